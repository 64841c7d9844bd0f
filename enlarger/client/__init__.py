"""A client of the service that `enlarger serve` runs, blocking and asynchronous; without torch."""
