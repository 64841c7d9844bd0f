"""Prompts to conditioning."""
