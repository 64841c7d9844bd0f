"""Checkpoints and their adapters as loaded models."""
