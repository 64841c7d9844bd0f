"""Networks beside the diffusion: depth, safety, previews."""
