"""The networks of latent diffusion at work: conditioning, sampling, windows, tiles, and a second run in float32."""
