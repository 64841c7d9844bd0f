"""The engines by the names that users give, and what does not go together, refused before anything is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from enlarger.errors import InputError
from enlarger.runtime.engines.engine import EAGER, Engine

if TYPE_CHECKING:
    from enlarger.runtime.runtime import Offload

EngineName = Literal["torch", "compile", "openvino"]
INT8 = "int8"  # the precision that only an engine has


@dataclass(frozen=True)
class EngineOptions:
    """Where and how a model is to run; `cache` is the folder of what an engine keeps."""

    device: torch.device
    precision: str
    offload: "Offload"
    cache: Path


def make_engine(name: str, options: EngineOptions) -> Engine:
    """The engine of a name. Raises InputError for what it cannot honour, and for an extra that is not installed."""
    if options.precision == INT8 and name != "openvino":
        raise InputError("precision is int8, which the engine openvino alone computes in; give both, or neither")
    match name:
        case "torch":
            return EAGER
        case "compile":
            from enlarger.runtime.engines.compiled import CompileEngine

            if options.offload == "sequential":
                raise InputError(
                    "offload is sequential, which moves layers by hooks that compiled blocks leave out; use offload "
                    "model, or the engine torch"
                )
            return CompileEngine(options.device)
        case "openvino":
            from enlarger.runtime.engines.openvino import open_engine

            return open_engine(options)
        case _:
            raise InputError(f"engine is {name!r}, expected torch, compile or openvino")
