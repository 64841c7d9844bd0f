"""The pipelines' methods about memory and speed, under diffusers' names."""

import logging
import warnings
from typing import Any

import torch
from torch import nn
from torch.types import Device

from enlarger.diffusers.call.arguments import NoAccelerator, reject_unsupported
from enlarger.errors import Unsupported
from enlarger.runtime.runtime import Offload, Runtime

log = logging.getLogger(__name__)


class MemoryMethods:
    """For the pipelines to inherit."""

    _runtime: Runtime
    vae: Any
    unet: Any

    def _networks(self) -> list[nn.Module]:
        raise NotImplementedError

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Device = None) -> None:
        """Keep each network on the CPU except while it works."""
        self._enable_offload("model", gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Device = None) -> None:
        """Keep each layer on the CPU except while it works: least memory, slowest."""
        self._enable_offload("sequential", gpu_id, device)

    def enable_group_offload(
        self,
        onload_device: str | torch.device | int,
        offload_device: str | torch.device | int = "cpu",
        offload_type: str = "block_level",
        **options: object,
    ) -> None:
        """Keep layers ("leaf_level") or whole networks on the CPU except while they work; streams are not used."""
        if torch.device(offload_device).type != "cpu":
            raise Unsupported(f"offload_device is {offload_device}, expected the CPU; leave it out")
        if given := sorted(name for name, value in options.items() if value):
            log.warning("%s changes how group offloading moves weights in diffusers; here it has no effect", given)
        self._enable_offload("sequential" if offload_type == "leaf_level" else "model", None, onload_device)

    def _enable_offload(self, kind: Offload, gpu_id: int | None, device: Device) -> None:
        if device is None and not torch.accelerator.is_available():
            raise NoAccelerator("found no accelerator to load parts onto; without one there is nothing to offload")
        place = torch.accelerator.current_accelerator() if device is None else torch.device(device)
        assert place is not None, "there is one: it is available"
        place = torch.device(place.type, gpu_id) if gpu_id is not None else place
        for network in self._networks():
            network.to("cpu")
        self._runtime = Runtime(place, kind)

    def maybe_free_model_hooks(self) -> None:
        """Nothing is left on the device after a call."""

    def remove_all_hooks(self) -> None:
        """Offload no more."""
        self._runtime = Runtime(self._runtime.device)

    def reset_device_map(self) -> None:
        """There is no map: a pipeline is on one device."""

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Changes nothing, and warns so: attention is computed memory-efficiently in any case."""
        _warn_no_effect("attention slicing")

    def disable_attention_slicing(self) -> None:
        """Attention is never sliced."""

    def set_attention_slice(self, slice_size: str | int | None = "auto") -> None:
        """Changes nothing, as `enable_attention_slicing`."""
        _warn_no_effect("attention slicing")

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: object = None) -> None:
        """Changes nothing, as `enable_xformers_memory_efficient_attention`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: object = None) -> None:
        """Changes nothing, and warns so: torch's memory-efficient attention is always on, xformers is not needed."""
        reject_unsupported({"attention_op": attention_op}, {"attention_op": "attention is torch's; leave it out"})
        _warn_no_effect("xformers attention")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """xformers is never used."""

    def enable_vae_slicing(self) -> None:
        """Encode and decode one picture of a batch at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode in tiles, which changes nothing; see `AutoencoderKL.enable_tiling`."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self.vae.disable_tiling()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (Si et al. 2023): less of the skips (s) and more of the backbone (b) at the first two stages up.

        For the x2 upscaler too, at the first two stages that join a skip; in diffusers it does nothing there.
        """
        self.unet.enable_freeu(s1, s2, b1, b2)

    def disable_freeu(self) -> None:
        """Undo `enable_freeu`."""
        self.unet.disable_freeu()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Join the products of the UNet's attentions; the autoencoder has a single one and keeps it."""
        if unet:
            self.unet.fuse_qkv_projections()

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Undo `fuse_qkv_projections`."""
        if unet:
            self.unet.unfuse_qkv_projections()


def _warn_no_effect(what: str) -> None:
    warnings.warn(
        f"{what} changes nothing here: attention always runs through torch's memory-efficient "
        "scaled_dot_product_attention",
        stacklevel=3,
    )
