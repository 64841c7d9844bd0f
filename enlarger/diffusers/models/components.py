"""Parts of the pipelines: what is taken for one, and how our own code sees it."""

from typing import Any

from torch import nn

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.models.foreign import is_foreign, is_other_autoencoder, read_vision_part
from enlarger.diffusers.models.modules import model_view
from enlarger.diffusers.models.tokenizer import CLIPTokenizer
from enlarger.diffusers.schedulers import scheduler_from_config
from enlarger.tasks.auxiliary.depth_estimator import DepthEstimator
from enlarger.tasks.auxiliary.safety_checker import SafetyChecker
from enlarger.text.tokenize import Tokenizer


def native_of(part: Any) -> Any:
    return getattr(part, "native", part)


class Compiled(nn.Module):
    """A compiled view, called as our own networks are."""

    def __init__(self, compiled: Any) -> None:
        super().__init__()
        self.compiled = compiled

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.compiled._orig_mod.native, name)

    def forward(self, *args: object, **inputs: object) -> Any:
        return self.compiled(*args, **inputs)


def as_component(name: str, value: Any) -> Any:
    """A part of ours, of diffusers' or of transformers', as the pipelines keep it."""
    room = type(value).__module__.split(".")[0]
    if isinstance(value, Tokenizer):
        return CLIPTokenizer(value)
    if name.startswith("tokenizer") and room == "transformers":
        return CLIPTokenizer.of_theirs(value)
    if name.endswith("scheduler") and room == "diffusers":
        return scheduler_from_config({**value.config, "_class_name": type(value).__name__})
    return read_vision_part(model_view(value)) if is_foreign(value) else model_view(value)


def fits(name: str, part: object, kind: type[object]) -> bool:
    """Whether a part, not None, can be the pipeline's of that name."""
    if name == "vae" and is_other_autoencoder(part):
        return True
    if name in ("feature_extractor", "image_encoder") and is_foreign(part):
        return True  # of IP-Adapters, which are not here, and of checkers: kept, and saved again
    return isinstance(getattr(part, "native", part), kind)


def is_kept(given: object, part: object) -> bool:
    """Whether a part of theirs was not read into one of our networks, so that it writes its own files."""
    return is_foreign(given) and (given is part or isinstance(part, DepthEstimator | SafetyChecker))


def wrong_component(name: str, value: object, kind: type[object]) -> str:
    plain = getattr(value, "native", value)
    found = f"{type(plain).__module__}.{type(plain).__name__}"
    if kind is type(None):
        return f"{name} is a {found}, expected None: enlarger has no such part"
    if name == "scheduler":
        return f"scheduler is a {found}, expected one of enlarger.diffusers; make it by from_config(scheduler.config)"
    return f"{name} is a {found}, expected {kind.__module__}.{kind.__name__}; read it with from_pretrained"


def parse_shard_size(size: int | str | None) -> int:
    """Bytes of "5GB" or "500MB"."""
    if size is None or isinstance(size, int):
        return 10_000_000_000 if size is None else size
    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3}
    number, unit = size[:-2].strip(), size[-2:].upper()
    if unit not in units or not number.replace(".", "", 1).isdigit():
        raise ArgumentError(f"max_shard_size is {size!r}, expected bytes or a size such as '5GB'")
    return int(float(number) * units[unit])
