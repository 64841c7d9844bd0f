"""The pipelines under diffusers' names."""
