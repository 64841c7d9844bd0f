"""Half precision that overflows is computed again in float32, once, and that is said: no silent black picture."""

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from enlarger.checkpoint.tensors.finite_check import find_first_non_finite
from enlarger.diffusion.noise import generators_of
from enlarger.diffusion.overflow import first_overflow
from enlarger.errors import NonFinite
from enlarger.runtime.engines.engine import Calibrated

if TYPE_CHECKING:
    from enlarger.tasks.latent_diffusion.sampling import SamplingPlan


@contextmanager
def in_float32(network: nn.Module, enabled: bool = True) -> Generator[torch.dtype]:
    """The network in float32 for the length of the block, if that is wanted; gives its precision there."""
    dtype = next(network.parameters()).dtype
    if not enabled or dtype == torch.float32:
        yield dtype
        return
    network.float()
    try:
        yield torch.float32
    finally:
        network.to(dtype)


def attempts(networks: Sequence[nn.Module], plan: "SamplingPlan") -> Iterator[AbstractContextManager[None]]:
    """`for attempt in attempts(...)`, `with attempt:` a run, which is returned from there.

    One whose calls only calibrate an engine is made again. Where one ends in NonFinite of a network in half precision
    whose weights are numbers, a last follows in float32, after a warning that names module and step. Each has the same
    noise.
    """
    generators = generators_of(plan.noise)
    states, failed, again = [generator.get_state() for generator in generators], False, False

    @contextmanager
    def run() -> Generator[None]:
        nonlocal again
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        try:
            yield
            again = False
        except Calibrated:
            again = True

    @contextmanager
    def first() -> Generator[None]:
        nonlocal failed
        try:
            with run():
                yield
        except NonFinite as error:
            is_half = any(next(network.parameters()).dtype != torch.float32 for network in networks)
            if not is_half or any(find_first_non_finite(network) is not None for network in networks):
                raise
            failed = True
            warnings.warn(f"{error}{_step(error, plan)}: denoised again in float32", stacklevel=2)

    @contextmanager
    def second() -> Generator[None]:
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(in_float32(network))
            with run():
                yield

    yield first()
    while again and not failed:
        yield first()
    if failed:
        yield second()
        while again:
            yield second()


def _step(error: NonFinite, plan: "SamplingPlan") -> str:
    if error.sigma is None:
        return ""
    step = max(1, int((plan.sigma_schedule.sigmas >= error.sigma * (1 - 1e-6)).sum()))
    return f" at step {step}, noise level {error.sigma:.4g}"


def warn_of_overflow(autoencoder: nn.Module, dtype: torch.dtype, what: str, run: Callable[[], object]) -> None:
    """Say which module of an autoencoder overflowed, and that the picture is computed again."""
    name = first_overflow(autoencoder, run)
    where = "" if name is None else f" in {name}"
    precision = str(dtype).removeprefix("torch.")
    warnings.warn(f"the autoencoder overflowed{where} in {precision}: {what} again in float32", stacklevel=2)


def is_finite(*tensors: Tensor) -> bool:
    """Whether there is no NaN and no infinity in them."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
