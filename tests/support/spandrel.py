"""Small upscaler networks of ten architectures, as spandrel builds them; the torchvision of two others is a stub."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

STUBS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


def import_spandrel() -> ModuleType:
    """spandrel, without a torchvision, whose builds for other devices do not fit the torch of the tests."""
    if "spandrel" not in sys.modules:
        stubs = {} if importlib.util.find_spec("torchvision") else {name: ModuleType(name) for name in STUBS}
        for name in ("InterpolationMode", "rotate", "normalize"):
            for module in stubs.values():
                setattr(module, name, None)
        sys.modules.update(stubs)
        try:
            importlib.import_module("spandrel")
        finally:
            for name in stubs:  # other libraries ask whether torchvision is there
                del sys.modules[name]
    return sys.modules["spandrel"]


def _network(module: str, name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import_spandrel()
        torch.manual_seed(0)
        return getattr(importlib.import_module(f"spandrel.architectures.{module}"), name)(**options).eval()

    return build


_WINDOWED = {"embed_dim": 12, "img_size": 16, "img_range": 1.0, "upsampler": "pixelshuffle"}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Compact": _network("Compact", "Compact", num_feat=8, num_conv=2, upscale=4),
    "ESRGAN": _network("ESRGAN", "ESRGAN", num_filters=8, num_blocks=1, scale=4),
    "SwinIR": _network("SwinIR", "SwinIR", **_WINDOWED, depths=[2], num_heads=[2], window_size=8, upscale=2),
    "HAT": _network("HAT", "HAT", **_WINDOWED, depths=[2], num_heads=[2], window_size=4, upscale=2, squeeze_factor=3),
    "DAT": _network(
        "DAT", "DAT", **_WINDOWED | {"embed_dim": 32}, depth=[2], num_heads=[2], split_size=[4, 4], upscale=2
    ),
    "SPAN": _network("SPAN", "SPAN", num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
    "PLKSR": _network("PLKSR", "PLKSR", dim=8, n_blocks=2, upscaling_factor=2, kernel_size=5),
    "OmniSR": _network("OmniSR", "OmniSR", num_feat=8, block_num=1, window_size=8, res_num=1, up_scale=2),
    "RCAN": _network("RCAN", "RCAN", scale=2, n_resgroups=1, n_resblocks=1, n_feats=16),
    "SAFMN": _network("SAFMN", "SAFMN", dim=8, n_blocks=1, upscaling_factor=2),
}
"""How each is built, with random weights."""
