"""Engines: what computes a network's calls in place of torch's eager mode. Networks and tasks never know which."""
