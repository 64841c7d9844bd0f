"""Models in diffusers' folder layout: loading and saving."""
