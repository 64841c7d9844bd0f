"""Reading and writing pipelines' folders, LoRAs and textual inversions."""
