"""Drills: what the service must bear, done to a real one and measured. Continuous integration runs them in short form,
`scripts/faults` and `scripts/soak` in full."""
