"""The queue: what waits lies in SQLite, one process per device works it off, and everybody can watch."""
