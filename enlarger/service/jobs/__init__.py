"""The queue: jobs are stored in SQLite, run by one process per device, and can be followed by their events."""
