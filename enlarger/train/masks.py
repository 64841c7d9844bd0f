"""The masks that an inpainting model learns from: those of `image.random_mask`."""

from enlarger.image.random_mask import LAMA_MASKS, MaskSettings, lama_mask

__all__ = ["LAMA_MASKS", "MaskSettings", "lama_mask"]
