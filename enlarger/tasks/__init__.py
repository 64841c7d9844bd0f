"""What enlarger does: one file per task."""
