"""Downloading checkpoints once, and finding them again: nothing here connects to anything but for `pull`."""
