"""The one bound of a task's memory, and which windows and tiles keep it: the plan and the run ask here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from enlarger.diffusion.windows import Windows
from enlarger.errors import InputError
from enlarger.memory_size import format_bytes
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.runtime.layout import use_layout
from enlarger.runtime.memory import process_bytes, room_bytes, weight_bytes
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.planning.network_costs import (
    Size,
    decoder_cost,
    diffusion_cost,
    encoder_cost,
    input_channels,
    picture_cost,
)

DEFAULT_WORK = 2**32  # bytes of a network's work where no bound is given: results do not differ between larger machines
TILES = (128, 64, 32, 16)  # pixels along a side of an autoencoder's tiles, at every resolution within it
LEAST_PICTURE_TILE = 32  # pixels along a side of the tiles of a network from picture to picture
READ_BYTES, PICTURE_BYTES, LARGE_BYTES = 45, 24, 12  # of a pixel: while it is read, while networks work, of a result
FINISH_BYTES = 18  # of a result's pixel: made consistent and turned into what is written
LATENT_BYTES = 16 * 8  # of a latent: what a solver remembers, the noise, and the blend of windows


@dataclass(frozen=True)
class MemoryRoom:
    """What a run may take: `bytes` for pictures and work below the bound, beside the process and the weights.

    `held` is what is there of the picture while networks work.
    """

    bytes: int
    weights: int
    process: int
    runtime: Runtime
    held: int = 0
    asked: str | float | None = None

    @classmethod
    def of(
        cls, memory: str | float | None, runtime: Runtime, networks: Sequence[nn.Module], picture: Size
    ) -> "MemoryRoom":
        """The room beside networks that are loaded, for a picture of a size, by what a request says of memory."""
        for network in networks:
            use_layout(network, runtime.memory_format)  # as it will be held, since its features take less or more by it
        weights = weight_bytes(*networks, offload=runtime.offload if runtime.device.type != "cpu" else "none")
        room = room_bytes(memory, runtime.device, weights)
        held = PICTURE_BYTES * picture[0] * picture[1] if runtime.device.type == "cpu" else 0
        return cls(room, weights, process_bytes(runtime.device), runtime, held, memory)

    @property
    def base(self) -> int:
        """What is taken before there is a picture."""
        return self.process + self.weights

    @property
    def work(self) -> int:
        """What is left for a network; not more than `DEFAULT_WORK` where nobody has asked."""
        left = self.bytes - self.held
        return min(left, DEFAULT_WORK) if self.asked is None else left

    @property
    def beside_weights(self) -> str | None:
        """What a request to another model may say of memory, which works while these networks stay loaded."""
        return None if self.asked is None else f"{max(11, (self.process + self.bytes) // 10**6)}MB"

    def refuse(self, needed: int, what: str) -> InputError:
        """What is raised where even the smallest tiles need more."""
        total, process, weights, work = map(format_bytes, (self.base + needed, self.process, self.weights, needed))
        return InputError(
            f"memory is {self.asked}, but {what} needs {total}: {process} of the process, {weights} of weights and "
            f"{work} for its work in the smallest tiles; give more, a smaller picture, or a lower precision"
        )


@dataclass(frozen=True, eq=False)
class NetworkShape:
    """What sets the windows of a diffusion network."""

    network: nn.Module
    trained_side: int  # latents along a side of the pictures it was trained on
    multiple: int  # of which its sides must be

    def work(self, side: int, rows: int) -> int:
        """Bytes that a window of that side takes."""
        return diffusion_cost(self.network, (side, side), rows).peak

    @property
    def least_side(self) -> int:
        """The smallest window."""
        return 2 * self.multiple

    def affordable_side(self, work: int, rows: int) -> int:
        """The largest side of a window whose work takes no more; the least one where none does."""
        least, multiple = self.least_side, self.multiple
        sample = 16 * multiple
        side = int(sample * (max(work, 1) / self.work(sample, rows)) ** 0.5) // multiple * multiple
        while side > least and self.work(side, rows) > work:
            side -= multiple
        return max(side, least)


class Tiled(Protocol):
    """What a request says of windows."""

    @property
    def tile(self) -> bool | None: ...


def choose_windows(request: Tiled, shape: NetworkShape, size: Size, work: int | None, rows: int) -> Windows | None:
    """The windows for `rows` latents of `size` (h, w), both branches of a guidance counted; None: whole.

    Where the request asks for tiles they have the size that the network was trained on, if the memory allows; where it
    does not say, what does not fit the memory is cut into the largest windows that do. Without a bound (`work` None)
    only what is asked for is cut; else a window takes at most that many bytes.
    """
    multiple = shape.multiple
    work = None if work is None else work - latent_bytes(size, rows)
    trained = max(2, shape.trained_side // multiple) * multiple
    fits = work is None or request.tile is False or diffusion_cost(shape.network, size, rows).peak <= work
    if fits and not request.tile:
        return None
    side = max(size) if fits or work is None else shape.affordable_side(work, rows)
    side = min(side, trained) if request.tile else side
    if max(size) <= side:
        return None
    return windows_of_side(side, multiple)


def latent_bytes(size: Size, rows: int) -> int:
    """What a run holds of its latents beside the network's work."""
    return LATENT_BYTES * size[0] * size[1] * rows


def windows_of_side(side: int, multiple: int) -> Windows:
    """Windows that share a quarter of their side with each neighbour."""
    return Windows(side, max(multiple, side // 4 // multiple * multiple), multiple)


def picture_tile(network: nn.Module, tile: int, margin: int, work: int | None) -> int:
    """The side of the tiles in which a network goes over a picture, with a margin: `tile`, or what fits into `work`."""

    def peak(side: int) -> int:
        return picture_cost(network, (side + 2 * margin, side + 2 * margin), input_channels(network)).peak

    sides = [tile >> halvings for halvings in range(8) if tile >> halvings >= LEAST_PICTURE_TILE]
    return next((side for side in sides if work is None or peak(side) <= work), sides[-1])


def encoder_tile(autoencoder: AutoencoderKL, size: Size, work: int | None, *, tiled: bool = False) -> int | None:
    """The tile in which a picture of `size` pixels is encoded in `work` bytes; None: whole."""
    return _choose_tile(lambda tile: encoder_cost(autoencoder, size, tile).peak, work, tiled=tiled)


def decoder_tile(autoencoder: AutoencoderKL, size: Size, work: int | None, *, tiled: bool = False) -> int | None:
    """The tile in which latents of `size` are decoded; None: whole."""
    return _choose_tile(lambda tile: decoder_cost(autoencoder, size, tile).peak, work, tiled=tiled)


def _choose_tile(peak: Callable[[int | None], int], work: int | None, *, tiled: bool) -> int | None:
    if not tiled and (work is None or peak(None) <= work):
        return None
    return next((tile for tile in TILES if work is None or peak(tile) <= work), TILES[-1])
