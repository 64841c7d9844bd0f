"""What a callback may change while a run goes on: the guidance, and what the network is told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.prepared import PreparedNetwork
from enlarger.diffusion.sample import OnStep, Step
from enlarger.tasks.latent_diffusion.sampling import KnownRegion


@dataclass(frozen=True)
class LiveGuidance(Guidance):
    """Guidance whose scale is the pipeline's at each call."""

    pipe: Any = None
    is_live: ClassVar[bool] = True

    def is_active(self, sigma: float) -> bool:
        return bool(self.pipe.do_classifier_free_guidance)

    def combine(self, output: Tensor) -> Tensor:
        return replace(Guidance(self.scale, self.rescale), scale=float(self.pipe.guidance_scale)).combine(output)


NetworkInputs = dict[str, Tensor]
Remake = Callable[
    [Mapping[str, Tensor], Tensor, NetworkInputs], tuple[Tensor, NetworkInputs]
]  # what was replaced, the input, the rest


def tokens_replaced(replaced: Mapping[str, Tensor], x: Tensor, inputs: NetworkInputs) -> tuple[Tensor, NetworkInputs]:
    """The prompt's features."""
    embeds = replaced.get("prompt_embeds")
    return x, inputs if embeds is None else {**inputs, "tokens": embeds.to(inputs["tokens"])}


def channels_replaced(names: Sequence[str], first: int, others: Remake = tokens_replaced) -> Remake:
    """`others`, and the input's channels from the first one on, by these names one after the other."""

    def remake(replaced: Mapping[str, Tensor], x: Tensor, inputs: NetworkInputs) -> tuple[Tensor, NetworkInputs]:
        place = first
        for name in names:
            given: Tensor | None = replaced.get(name)
            width = 1 if name in ("mask", "depth_mask") else first
            if given is not None:
                x = torch.cat([x[:, :place], given.to(x).expand(len(x), -1, -1, -1), x[:, place + width :]], 1)
            place += width
        return others(replaced, x, inputs)

    return remake


def masks_replaced(unet: Any, others: Remake) -> Remake:
    """`others`, and the mask and the masked latents where the UNet takes them, beside 4 channels of latents."""
    config = unet.config
    if config.in_channels == config.out_channels:
        return others
    return channels_replaced(["mask", "masked_image_latents"], config.out_channels, others)


def mask_followed(on_step: OnStep, region: KnownRegion | None, replaced: Mapping[str, Tensor]) -> OnStep:
    """`on_step`, after which the region is known by the mask that a callback gave instead, (B or 2B, 1, h, w)."""

    def follow(step: Step) -> Tensor:
        x = on_step(step)
        mask = replaced.get("mask")
        if region is not None and mask is not None:
            region.mask.copy_(mask[: len(region.mask)].to(region.mask))
        return x

    return follow


def with_own_mask(region: KnownRegion | None) -> KnownRegion | None:
    """The region with a mask that may be written to."""
    return None if region is None else replace(region, mask=region.mask.clone())


class Redirected(nn.Module):
    """A network that is told what callbacks have replaced."""

    def __init__(
        self,
        network: nn.Module,
        replaced: Mapping[str, Tensor],
        remake: Remake = tokens_replaced,
        besides: NetworkInputs | None = None,
    ) -> None:
        super().__init__()
        self.network, self.replaced, self.remake = network, replaced, remake
        self.besides = dict(besides or {})  # each (1, n)
        self._prepared = PreparedNetwork(network)

    @property
    def config(self) -> Any:
        return self.network.config

    def forward(self, x: Tensor, time: Tensor, **inputs: Tensor) -> Tensor:
        x, inputs = self.remake(self.replaced, x, inputs)
        besides = {name: self._widened(name, len(x)) for name in self.besides}
        return self._prepared(x, time, **inputs, **besides)

    def _widened(self, name: str, count: int) -> Tensor:
        """A row of `besides` for each of a batch; the same tensor as long as the batch is as large."""
        if len(self.besides[name]) != count:
            self.besides[name] = self.besides[name][:1].expand(count, -1)
        return self.besides[name]
