"""Files of weights to modules, and back."""
