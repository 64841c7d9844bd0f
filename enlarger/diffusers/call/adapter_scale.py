"""The scale of the adapters in one call: `cross_attention_kwargs={"scale": 0.5}`."""

import logging
from collections.abc import Callable, Container, Generator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

log = logging.getLogger(__name__)


class ScaledCalls:
    """For the pipelines to inherit."""

    @contextmanager
    def _scaled(self, kwargs: Mapping[str, Any] | None) -> Generator[None]:
        """For the length of the block the adapters' scale is another one."""
        if unknown := sorted(set(kwargs or {}) - {"scale"}):
            log.warning("cross_attention_kwargs %s are not expected and will be ignored", unknown)
        scale = (kwargs or {}).get("scale")
        self._lora_scale = 1.0 if scale is None else float(scale)
        scaled: dict[str, nn.Module] = {} if scale is None else self._with_lora_scale(float(scale))
        own = {name: getattr(self, name) for name in scaled}
        try:
            for name, network in scaled.items():
                object.__setattr__(self, name, network)
            yield
        finally:
            for name, network in own.items():
                object.__setattr__(self, name, network)

    def _with_lora_scale(self, scale: float) -> dict[str, nn.Module]:
        """The networks with all active adapters multiplied; without adapters there are none."""
        return {}

    def _take_adapters(self, pipeline: object, replaced: Container[str]) -> None:
        """Go on with another pipeline's adapters, whose parts this one has."""


def accept_lora_scale(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let a pipeline's call take the adapters' scale, `cross_attention_kwargs={"scale": 0.5}`."""

    @wraps(call)
    def run(self: Any, *args: Any, cross_attention_kwargs: Mapping[str, float] | None = None, **kwargs: Any) -> Any:
        self._cross_attention_kwargs, self._clip_skip = cross_attention_kwargs, kwargs.get("clip_skip")
        with self._scaled(cross_attention_kwargs):
            return call(self, *args, **kwargs)

    return run
