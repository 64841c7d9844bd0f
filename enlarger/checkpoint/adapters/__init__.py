"""What is added to a model: LoRAs and textual inversions."""
