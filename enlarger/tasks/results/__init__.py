"""What a task gives back, and what it says of how that was made."""
