"""The stages: a predictor of the mean, a detailer that answers to the eye, one for graphics, and a restorer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from enlarger.image.degrade import Severity
from enlarger.nn.compact import upsample_bicubic
from enlarger.nn.perceptual import Judges, first_stages
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig, backproject
from enlarger.train.loop import Loss, channels_last, learn
from enlarger.train.pairs import Mixture, Pair, Pairs, batches, unpacked
from enlarger.train.photos import Photos
from enlarger.train.recipe import Recipe

PROBES = 48  # pairs of held-out photographs to score with
EYE_OF_RESTORER = 0.08  # of what the eye sees, beside the absolute error
WINDOW = 64  # pixels on a side that VGG16 sees of each crop: it costs more than the network itself


@dataclass(frozen=True)
class Workshop:
    """What the stages share: photographs, the eye, where logs and states lie, and how many processes prepare pairs."""

    photos: Photos
    judges: Judges | None
    folder: Path
    workers: int = 1


def train_graphics(shop: Workshop, net: UpscaleNet, recipe: Recipe, mixture: Mixture) -> UpscaleNet:
    """As the predictor, from drawings for the most part."""
    return _train(shop, net, recipe, mixture, _mean_error, "graphics")


def train_predictor(shop: Workshop, net: UpscaleNet, recipe: Recipe, mixture: Mixture) -> UpscaleNet:
    """Absolute error first, since it converges faster; squared error, whose minimum is the mean, for the last part."""
    return _train(shop, net, recipe, mixture, _mean_error, "predictor")


def _mean_error(module: nn.Module, pair: Pair, progress: float) -> Tensor:
    error = module(pair.small).float() - pair.large
    return error.abs().mean() if progress < 0.6 else 8 * error.square().mean()


def train_detailer(shop: Workshop, net: UpscaleNet, recipe: Recipe, mixture: Mixture) -> UpscaleNet:
    """Half the absolute error and what the eye sees, of the picture made consistent with its input."""
    eye = Eye(shop.judges)

    def loss(module: nn.Module, pair: Pair, progress: float) -> Tensor:
        found = backproject(module(pair.small).float(), pair.small)
        return 0.5 * (found - pair.large).abs().mean() + eye(found, pair.large)

    return _train(shop, net, recipe, mixture, loss, "detailer")


def train_restorer(shop: Workshop, net: UpscaleNet, recipe: Recipe, mixture: Mixture) -> UpscaleNet:
    """Absolute error and a little of what the eye sees, of damaged pictures; how damaged they are is an input."""
    eye = Eye(shop.judges)

    def loss(module: nn.Module, pair: Pair, progress: float) -> Tensor:
        found = module(with_plane(pair)).float()
        return (found - pair.large).abs().mean() + EYE_OF_RESTORER * eye(found, pair.large)

    return _train(shop, net, recipe, replace(mixture, severity=mixture.severity or Severity()), loss, "restorer")


def widened(config: UpscaleNetConfig, start: UpscaleNet | None, seed: int) -> UpscaleNet:
    """A network that begins as `start` does, which may have fewer inputs."""
    torch.manual_seed(seed)
    net = UpscaleNet(config)
    own = net.state_dict()
    for name, value in (start.state_dict() if start is not None else {}).items():
        if name == "head.weight":
            own[name].zero_()
            own[name][:, : value.shape[1]] = value[:, : own[name].shape[1]]
        elif name in own:
            own[name].copy_(value)
    return net


def with_plane(pair: Pair) -> Tensor:
    """The small pictures, each with a plane that says how damaged it is, (B, 4, h, w)."""
    plane = pair.strength.view(-1, 1, 1, 1).expand(-1, 1, *pair.small.shape[-2:])
    return torch.cat([pair.small, plane], 1)


def psnr(found: Tensor, expected: Tensor) -> float:
    """Mean over the batch of the peak signal-to-noise ratio in dB, pixels in -1..1."""
    error = (found.clamp(-1, 1) - expected).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


def _train(
    shop: Workshop, net: UpscaleNet, recipe: Recipe, mixture: Mixture, loss: Loss[Pair], name: str
) -> UpscaleNet:
    training, held_out = shop.photos.split()
    pairs = Pairs(training, mixture, recipe.seed)
    plain = replace(mixture, batch=PROBES, drawn=0.0, kernels=0.0)
    probe = unpacked(*Pairs(held_out, plain, recipe.seed + 1)[0])

    def source(first: int, end: int) -> Iterator[Pair]:
        return batches(pairs, first, end, shop.workers)

    @torch.inference_mode()
    def score(module: nn.Module) -> dict[str, float]:
        found = module(with_plane(probe) if net.config.extra_channels else probe.small)
        scores = {"psnr": psnr(found, probe.large), "bicubic": psnr(upsample_bicubic(probe.small), probe.large)}
        if shop.judges is not None:
            scores["lpips"] = float(shop.judges.alex(found, probe.large).mean())
        return scores

    return cast(UpscaleNet, learn(channels_last(net), loss, source, recipe, shop.folder, name, score))


@dataclass(frozen=True, eq=False)
class Eye:
    """LPIPS of AlexNet on whole crops, and half of VGG16's first three stages on a window of each.

    AlexNet's alone leaves a faint grid on flat areas, which VGG16's fine stages see. Nothing without judges.
    """

    judges: Judges | None

    def __call__(self, found: Tensor, truth: Tensor) -> Tensor:
        if self.judges is None:
            return found.new_zeros(())
        side = min(WINDOW, *truth.shape[-2:])
        top, left = (int(torch.randint(0, size - side + 1, (1,))) for size in truth.shape[-2:])
        a, b = (x[..., top : top + side, left : left + side] for x in (found, truth))
        return self.judges.alex(found, truth).mean() + 0.5 * first_stages(self.judges.vgg, 3)(a, b).mean()
