"""The upscale service: HTTP in front, a queue on disk, and one worker process per device. POSIX systems only."""
