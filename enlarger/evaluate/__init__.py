"""Measuring pictures."""
