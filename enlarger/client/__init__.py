"""A client of the service: what `enlarger serve` serves, in Python, now and asynchronously; without torch."""
