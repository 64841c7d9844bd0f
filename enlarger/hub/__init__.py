"""Fetching checkpoints once, and finding the copies again: nothing here connects to anything but for `pull`."""
