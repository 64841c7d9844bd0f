"""How alike two pictures look: LPIPS (Zhang et al. 2018) and DISTS (Ding et al. 2020), with the user's weights.

The weights are one safetensors file that `scripts/judges` makes of public packages; none ship with enlarger. Pictures
are (B, 3, H, W) in -1..1; each distance is (B,), 0 for equal pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from enlarger.errors import CheckpointError

ALEXNET = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride and padding of each convolution
VGG16 = (2, 2, 3, 3, 3)  # convolutions of each stage
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS' own, for -1..1
LEAST = 32  # pixels on a side, under which the last stages are empty


@dataclass(frozen=True, eq=False)
class Lpips:
    """Squared differences of unit features of AlexNet or VGG16, weighted by channel, averaged over places."""

    convolutions: tuple[tuple[Tensor, Tensor], ...]
    heads: tuple[Tensor, ...]  # (1, C, 1, 1) each

    def __call__(self, found: Tensor, truth: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.features(truth)
        pairs = zip(self.features(found), expected, self.heads, strict=False)
        terms = [((_unit(a) - _unit(b)).square() * head).sum(1).mean((1, 2)) for a, b, head in pairs]
        return torch.stack(terms).sum(0)

    def features(self, picture: Tensor) -> list[Tensor]:
        """The activations that are compared, finest first."""
        x = (picture - picture.new_tensor(SHIFT).view(1, 3, 1, 1)) / picture.new_tensor(SCALE).view(1, 3, 1, 1)
        return _alexnet(x, self.convolutions) if len(self.convolutions) == len(ALEXNET) else self._vgg(x)

    def _vgg(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for stage in _stages(self.convolutions):
            x = _convolve(F.max_pool2d(x, 2, 2) if found else x, stage)
            found.append(x)
        return found


@dataclass(frozen=True, eq=False)
class Dists:
    """Structure and texture: correlations and means of VGG16's features, pooled without aliasing."""

    convolutions: tuple[tuple[Tensor, Tensor], ...]
    alpha: tuple[Tensor, ...]  # (1, C, 1, 1) for each stage and the picture itself: weights of the means
    beta: tuple[Tensor, ...]  # and of the correlations

    def __call__(self, found: Tensor, truth: Tensor) -> Tensor:
        total = sum(float(w.sum()) for w in (*self.alpha, *self.beta))
        score = torch.ones(len(found), dtype=found.dtype, device=found.device)
        stages = zip(self.features(found), self.features(truth), self.alpha, self.beta, strict=True)
        for f, g, alpha, beta in stages:
            mean_f, mean_g = f.mean((2, 3), keepdim=True), g.mean((2, 3), keepdim=True)
            spread_f, spread_g = ((v - m).square().mean((2, 3), keepdim=True) for v, m in ((f, mean_f), (g, mean_g)))
            shared = (f * g).mean((2, 3), keepdim=True) - mean_f * mean_g
            texture = (2 * mean_f * mean_g + 1e-6) / (mean_f.square() + mean_g.square() + 1e-6)
            structure = (2 * shared + 1e-6) / (spread_f + spread_g + 1e-6)
            score = score - ((alpha * texture + beta * structure) / total).sum((1, 2, 3))
        return score

    def features(self, picture: Tensor) -> list[Tensor]:
        """The picture in 0..1 and the activations of each stage."""
        unit = picture / 2 + 0.5
        mean, spread = (
            (v.view(1, 3, 1, 1)) for v in picture.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        )
        x, found = (unit - mean) / spread, [unit]
        for stage in _stages(self.convolutions):
            x = _convolve(_smooth_pool(x) if len(found) > 1 else x, stage)
            found.append(x)
        return found


@dataclass(frozen=True, eq=False)
class Judges:
    """The distances that a file of weights holds."""

    alex: Lpips
    vgg: Lpips
    dists: Dists


def read_judges(path: Path) -> Judges:
    """Judges from the safetensors file that `scripts/judges` writes. Raises CheckpointError if it is none."""
    try:
        weights = safetensors.torch.load_file(path)
        vgg = _convolutions(weights, "vgg", sum(VGG16))
        return Judges(
            Lpips(_convolutions(weights, "alex", len(ALEXNET)), _vectors(weights, "alex.heads", 5)),
            Lpips(vgg, _vectors(weights, "vgg.heads", 5)),
            Dists(vgg, _vectors(weights, "dists.alpha", 6), _vectors(weights, "dists.beta", 6)),
        )
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{path}: holds no weights of LPIPS and DISTS ({error}); make the file with scripts/judges"
        ) from error


def first_stages(network: Lpips, count: int) -> Lpips:
    """VGG16's LPIPS cut to its finest stages, which cost a fraction and see small pictures."""
    return Lpips(network.convolutions[: sum(VGG16[:count])], network.heads[:count])


def _convolutions(weights: Mapping[str, Tensor], name: str, count: int) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple(
        (weights[f"{name}.{i}.weight"].contiguous(memory_format=torch.channels_last), weights[f"{name}.{i}.bias"])
        for i in range(count)
    )


def _vectors(weights: Mapping[str, Tensor], name: str, count: int) -> tuple[Tensor, ...]:
    return tuple(weights[f"{name}.{i}"].view(1, -1, 1, 1) for i in range(count))


def _stages(convolutions: tuple[tuple[Tensor, Tensor], ...]) -> list[tuple[tuple[Tensor, Tensor], ...]]:
    """VGG16's convolutions by stage, as many as there are."""
    ends = [sum(VGG16[: i + 1]) for i in range(len(VGG16))]
    return [convolutions[end - n : end] for end, n in zip(ends, VGG16, strict=True) if end <= len(convolutions)]


def _convolve(x: Tensor, convolutions: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    for weight, bias in convolutions:
        x = F.conv2d(x, weight, bias, padding=1).relu()
    return x


def _alexnet(x: Tensor, convolutions: tuple[tuple[Tensor, Tensor], ...]) -> list[Tensor]:
    found: list[Tensor] = []
    for i, ((weight, bias), (stride, padding)) in enumerate(zip(convolutions, ALEXNET, strict=True)):
        x = F.max_pool2d(x, 3, 2) if i in (1, 2) else x
        x = F.conv2d(x, weight, bias, stride, padding).relu()
        found.append(x)
    return found


def _smooth_pool(x: Tensor) -> Tensor:
    """The root of the mean square in Hann windows at every second place."""
    line = x.new_tensor([0.5, 1.0, 0.5])
    window = (line[:, None] * line / 4).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
