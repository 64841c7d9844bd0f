"""Upscalers: pictures or latents in, larger ones out."""
