"""What a task will take before it runs: memory, network calls, tiles and time."""
