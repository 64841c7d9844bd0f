"""AUTOMATIC1111's API under `/sdapi/v1`: its bodies translated into this service's jobs."""
