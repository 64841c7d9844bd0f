"""OpenVINO and NNCF behind functions with types, which they have few of. What they would report goes nowhere."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.errors import InputError

Graph = Any  # `openvino.Model`
GRAPH_FILE = "graph.xml"
CPU = "CPU"
KEPT_IN_FLOAT = (  # layers of diffusion networks: the first and the last, and what is made of the time
    ".*conv_in.*",
    ".*conv_out.*",
    ".*time_.*",
    ".*(add|class)_embedding.*",
    ".*norm[0-9][./]linear.*",
)
TELEMETRY = "openvino_telemetry"  # sends to its makers what openvino and nncf do


def check_installed() -> None:
    """Raise InputError, naming the extra, where the packages are not there."""
    if find_spec("openvino") is None or find_spec("nncf") is None:
        raise InputError("the engine openvino is not installed; pip install 'enlarger[openvino]'")


def _openvino() -> Any:
    """The package, without the one by which it would report each conversion to its makers."""
    telemetry: Any = sys.modules.get(TELEMETRY)
    if telemetry is None:
        sys.modules[TELEMETRY] = None  # pyright: ignore[reportArgumentType] - Python's way to make a module missing
    else:  # someone has imported openvino before
        for name in ("start_session", "send_event", "send_error", "send_stack_trace", "end_session", "force_shutdown"):
            setattr(telemetry.Telemetry, name, _ignore)
    import openvino

    return openvino


@cache
def _core() -> Any:
    """The one of the process, as its makers advise: with the last one would go the plugin that its graphs run in."""
    return _openvino().Core()


def _ignore(*_: object, **__: object) -> None:
    """Report nothing."""


def version() -> str:
    """OpenVINO's."""
    found: str = _openvino().__version__
    return found


@dataclass(frozen=True)
class Inputs:
    """What a network is called with: a few tensors in a row, then more by name, always in this order."""

    count: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, row: Sequence[Tensor], named: dict[str, Tensor]) -> "Inputs":
        return cls(len(row), tuple(sorted(named)))


class _InARow(nn.Module):
    """The network with all inputs in a row, as tracing needs them."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        row, named = tensors[: self.inputs.count], tensors[self.inputs.count :]
        return self.network(*row, **dict(zip(self.inputs.names, named, strict=True)))


def convert(network: nn.Module, inputs: Inputs, examples: Sequence[Tensor]) -> Graph:
    """The graph of a network in float32, which shares the weights if they are float32; any sizes of its inputs."""
    openvino = _openvino()
    is_float32 = all(weight.dtype == torch.float32 for weight in network.parameters())
    module = _InARow(network if is_float32 else deepcopy(network).float(), inputs).eval()
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: sizes that were checked are not part of the graph
        tensors = tuple(to_float32(each).clone() for each in examples)
        return openvino.convert_model(torch.jit.trace(module, tensors, check_trace=False))


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor as graphs take it."""
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def save(graph: Graph, folder: Path) -> None:
    """Write a graph and its weights."""
    _openvino().save_model(graph, folder / GRAPH_FILE, compress_to_fp16=False)


def read(folder: Path) -> Graph:
    """The graph of a folder; its weights are mapped. Raises RuntimeError for what it cannot read."""
    return _core().read_model(folder / GRAPH_FILE)


@dataclass(frozen=True, eq=False)
class Executable:
    """A graph made ready for the CPU. Calls wait for one another: each has all cores."""

    request: Any  # `openvino.InferRequest`
    lock: AbstractContextManager[Any]

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The only output, in float32."""
        arrays = [to_float32(each).numpy() for each in tensors]
        with self.lock:
            outputs = self.request.infer(arrays, share_inputs=True, share_outputs=True)
            return torch.from_numpy(outputs[0]).clone()


def make_executable(graph: Graph, dtype: torch.dtype) -> Executable:
    """The graph for the CPU, with torch's number of threads, computing in float32 or bfloat16."""
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = _core().compile_model(graph, CPU, options)
    return Executable(compiled.create_infer_request(), Lock())


def quantise(graph: Graph, calls: Sequence[Sequence[Tensor]]) -> Graph:
    """The graph with 8-bit integers in its products and convolutions, ranges taken from calls that were made of it."""
    _openvino()
    import logging

    import nncf  # pyright: ignore[reportMissingTypeStubs] - it has none
    from rich import get_console

    def arrays(call: Sequence[Tensor]) -> list[Any]:
        return [to_float32(each).numpy() for each in call]

    nncf.set_log_level(logging.ERROR)
    console = get_console()
    is_quiet, console.quiet = console.quiet, True  # its bars: standard output may be someone's pipe
    try:
        return nncf.quantize(
            graph,
            nncf.Dataset(list(calls), arrays),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(calls),
            ignored_scope=nncf.IgnoredScope(patterns=list(KEPT_IN_FLOAT), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,  # sums of two products saturate on CPUs with AVX2 alone
                disable_bias_correction=True,  # takes as long as all else, and brought nothing
            ),
        )
    finally:
        console.quiet = is_quiet
