"""Whole models in one file: detected by shapes, read by key mapping, written back."""
