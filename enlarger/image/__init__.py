"""Pictures before and after the networks: decoding, encoding, colour, sizes, masks."""
