"""3x3 convolutions in a quarter of the multiplications, for float32 on a CPU, where these are what takes the time.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, arXiv 1509.09308, section 4.3): tiles of 6x6 and kernels
are transformed, multiplied as matrices of channels, and transformed back to 4x4. The same numbers up to rounding, whose
error is about twice that of the plain convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, WINDOW = 4, 6  # pixels along a side that a tile gives, and that it sees
LEAST_CHANNELS, LEAST_PIXELS = 384, 1024  # below, transforming costs more than it saves
BAND = 128  # tiles that are transformed at once, so that they stay in the processor's cache
NEAR, FAR = 0.5, 2.0  # squares of the points +-a and +-b that are interpolated at, beside 0 and infinity


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of tiles (36, 36), of kernels (36, 9) and back (16, 36), along rows and columns at once.

    The points are the square roots of 1/2 and 2 in place of 1 and 2, which rounds to a quarter of the error.
    """
    a, b, sums, product = NEAR**0.5, FAR**0.5, NEAR + FAR, NEAR * FAR
    points, scales = (a, -a, b, -b), [2 * NEAR * (NEAR - FAR)] * 2 + [2 * FAR * (FAR - NEAR)] * 2
    others = (FAR, FAR, NEAR, NEAR)
    tiles = [
        [product, 0, -sums, 0, 1, 0],
        *([0, -point * other, -other, point, 1, 0] for point, other in zip(points, others, strict=True)),
        [0, product, 0, -sums, 0, 1],
    ]
    kernels = [
        [1 / product, 0, 0],
        *([1 / n, p / n, p * p / n] for p, n in zip(points, scales, strict=True)),
        [0, 0, 1],
    ]
    back = [[float(power == 0), *(point**power for point in points), float(power == 3)] for power in range(TILE)]
    made = [torch.tensor(matrix, dtype=torch.float64) for matrix in (tiles, kernels, back)]
    of_tiles, of_kernels, to_output = (torch.kron(one, one).float() for one in made)
    return of_tiles, of_kernels, to_output


INPUT_TRANSFORM, KERNEL_TRANSFORM, OUTPUT_TRANSFORM = _transforms()


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution that is transformed where that pays, and torch's own everywhere else."""

    def forward(self, input: Tensor) -> Tensor:
        is_plain = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        pays = input.ndim == 4 and input[0, 0].numel() >= LEAST_PIXELS
        if not (is_plain and pays) or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(input)
        return convolve(input, self.weight, self.bias)


def use_winograd(network: nn.Module) -> None:
    """Let the 3x3 convolutions of a network be transformed; weights and names stay."""
    for part in network.modules():
        if type(part) is nn.Conv2d and _fits(part):
            part.__class__ = WinogradConv2d


def _fits(conv: nn.Conv2d) -> bool:
    is_common = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == "zeros"
    is_dense = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    return is_common and is_dense and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of x (B, C, H, W) with `weight` (D, C, 3, 3) and a border of zeros to (B, D, H, W)."""
    kernels = (KERNEL_TRANSFORM @ weight.reshape(-1, 9).T).reshape(WINDOW**2, *weight.shape[:2])  # (36, D, C)
    height, width = x.shape[2:]
    rows, columns = -(-height // TILE), -(-width // TILE)
    border = (0, 0, 1, columns * TILE - width + 1, 1, rows * TILE - height + 1)
    padded = F.pad(x.permute(0, 2, 3, 1), border)  # (B, H + 2, W + 2, C)
    made = x.new_empty(len(x), rows * TILE, columns * TILE, len(weight))
    band = max(1, BAND // columns)
    for picture, result in zip(padded, made, strict=True):
        for top in range(0, rows, band):
            stop = min(rows, top + band)
            tiles = picture[top * TILE : stop * TILE + 2].unfold(0, WINDOW, TILE).unfold(1, WINDOW, TILE)
            place = result[top * TILE : stop * TILE].view(stop - top, TILE, columns, TILE, len(weight))
            place.copy_(_convolve_tiles(tiles, kernels).permute(2, 0, 3, 1, 4))
    if bias is not None:
        made += bias
    return made[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def _convolve_tiles(tiles: Tensor, kernels: Tensor) -> Tensor:
    """Tiles (rows, columns, C, 6, 6) and transformed kernels (36, D, C) to (4, 4, rows, columns, D)."""
    rows, columns, channels = tiles.shape[:3]
    flat = tiles.permute(3, 4, 0, 1, 2).reshape(WINDOW**2, -1)
    seen = (INPUT_TRANSFORM @ flat).reshape(WINDOW**2, rows * columns, channels)
    products = torch.bmm(seen, kernels.mT)  # (36, tiles, D)
    return (OUTPUT_TRANSFORM @ products.reshape(WINDOW**2, -1)).reshape(TILE, TILE, rows, columns, -1)
