"""OpenVINO on a CPU: graphs of networks, kept on disk by what is in them, in float32, bfloat16 or 8-bit integers."""

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from enlarger import __version__
from enlarger.errors import InputError
from enlarger.runtime.engines import openvino_api as api
from enlarger.runtime.engines.engine import Calibrated, Call
from enlarger.runtime.engines.entries import DamagedEntry, Entries
from enlarger.runtime.engines.named import INT8, EngineOptions
from enlarger.runtime.engines.network_digest import NetworkDigests

FLOAT = "float"  # of graphs: as converted
LAYOUT = 1  # of entries; those of other numbers are not found
MOST_CALLS = 32  # of a run that 8-bit ranges are taken from, spread over it
MOST_READY = 6  # graphs made ready at once, each with a copy of its weights


def open_engine(options: EngineOptions) -> "OpenVinoEngine":
    """The engine for a model. Raises InputError for what it cannot honour, and where the extra is not installed."""
    api.check_installed()
    if options.device.type != "cpu":
        raise InputError(f"the engine openvino runs on the CPU, not on {options.device}; give device cpu")
    if options.offload != "none":
        raise InputError(
            f"offload is {options.offload}, but the engine openvino keeps weights of its own; leave it out"
        )
    if options.precision == "float16":
        raise InputError("precision is float16, which the engine openvino does not compute in on a CPU; use bfloat16")
    return OpenVinoEngine(Entries(options.cache / "openvino"), is_int8=options.precision == INT8)


@dataclass(frozen=True, eq=False)
class OpenVinoEngine:
    """`is_int8`: networks that a run calls many times compute in 8-bit integers, in ranges that a first run shows."""

    entries: Entries
    is_int8: bool = False
    name: str = "openvino"
    digests: NetworkDigests = field(default_factory=NetworkDigests)
    ready: OrderedDict[Hashable, api.Executable] = field(default_factory=OrderedDict[Hashable, api.Executable])

    @contextmanager
    def prepare(self, network: nn.Module, *, repeated: bool = False) -> Generator[Call]:
        check_plain(network)
        calls = _Calls(self, network, is_int8=self.is_int8 and repeated)
        yield calls
        if calls.seen:
            calls.quantise()
            raise Calibrated

    def find(self, key: str) -> api.Graph | None:
        """The graph of an entry; None where there is none, or where it was damaged, which is said."""
        try:
            folder = self.entries.find(key)
            return None if folder is None else api.read(folder)
        except (DamagedEntry, RuntimeError) as error:
            self.entries.drop(key)
            reason = str(error).splitlines()[0]
            warnings.warn(f"the engine's cache is damaged ({reason}): the network is converted again", stacklevel=2)
            return None

    def keep(self, key: str, graph: api.Graph) -> api.Graph:
        """The graph as it is kept on disk; as it is where the disk does not take it, which is said."""
        try:
            return api.read(self.entries.add(key, lambda folder: api.save(graph, folder)))
        except (OSError, RuntimeError) as error:
            warnings.warn(f"the engine's cache {self.entries.folder} cannot be written ({error})", stacklevel=2)
            return graph

    def executable(self, key: Hashable, make: Callable[[], api.Executable]) -> api.Executable:
        """What is ready under a key, or is made so; what was not used for longest goes."""
        if key not in self.ready:
            self.ready[key] = make()
            while len(self.ready) > MOST_READY:
                self.ready.popitem(last=False)
        self.ready.move_to_end(key)
        return self.ready[key]


@dataclass(eq=False)
class _Calls:
    """The calls of a network in one run. `seen` are those that 8-bit ranges are to be taken from."""

    engine: OpenVinoEngine
    network: nn.Module
    is_int8: bool
    seen: list[Sequence[Tensor]] = field(default_factory=list[Sequence[Tensor]])
    seen_inputs: api.Inputs | None = None
    stride: int = 1
    count: int = 0

    def __call__(self, *row: Tensor, **named: Tensor) -> Tensor:
        inputs = api.Inputs.of(row, named)
        tensors = [*row, *(named[name] for name in inputs.names)]
        run = self._int8(inputs, row[0].dtype) if self.is_int8 else None
        if run is None:
            run = self._float(inputs, tensors)
            if self.is_int8:
                self._see(inputs, tensors)
        return run(tensors).to(row[0].dtype)

    def quantise(self) -> None:
        """Make the 8-bit graph of the calls that were seen."""
        inputs, dtype, engine = self.seen_inputs, self.seen[0][0].dtype, self.engine
        assert inputs is not None
        key, float_key = self._key(inputs, INT8), self._key(inputs, FLOAT)
        engine.ready.pop((float_key, dtype), None)  # its memory is needed now
        graph = engine.find(float_key) or api.convert(self.network, inputs, self.seen[0])
        graph = engine.keep(key, api.quantise(graph, self.seen))
        engine.executable((key, dtype), lambda: api.make_executable(graph, dtype))

    def _float(self, inputs: api.Inputs, examples: Sequence[Tensor]) -> api.Executable:
        """The graph as converted, which is made where there is none yet."""
        key, dtype, engine = self._key(inputs, FLOAT), examples[0].dtype, self.engine

        def make() -> api.Executable:
            graph = engine.find(key) or engine.keep(key, api.convert(self.network, inputs, examples))
            return api.make_executable(graph, dtype)

        return engine.executable((key, dtype), make)

    def _int8(self, inputs: api.Inputs, dtype: torch.dtype) -> api.Executable | None:
        """The 8-bit graph; None where there is none yet."""
        key, engine = self._key(inputs, INT8), self.engine
        if (key, dtype) not in engine.ready:
            graph = engine.find(key)
            if graph is None:
                return None
            return engine.executable((key, dtype), lambda: api.make_executable(graph, dtype))
        return engine.ready[key, dtype]

    def _see(self, inputs: api.Inputs, tensors: Sequence[Tensor]) -> None:
        """Keep every so many of the calls with the inputs of the first."""
        self.seen_inputs = inputs if self.seen_inputs is None else self.seen_inputs
        if inputs != self.seen_inputs:
            return
        if self.count % self.stride == 0:
            self.seen.append([each.detach().clone() for each in tensors])
        self.count += 1
        if len(self.seen) > MOST_CALLS:
            self.seen, self.stride = self.seen[::2], 2 * self.stride

    def _key(self, inputs: api.Inputs, kind: str) -> str:
        """Of an entry: what its graph depends on."""
        parts = (LAYOUT, __version__, api.version(), self.engine.digests(self.network), inputs, kind)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def check_plain(network: nn.Module) -> None:
    """Raise InputError for what a graph would leave out."""
    for part in network.modules():
        if getattr(part, "skip_filter", None) is not None:
            raise InputError("FreeU is on, which the engine openvino leaves out; turn it off, or use the engine torch")
        if part._forward_hooks or part._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage] - torch does not tell
            raise InputError(
                f"found a hook on {type(part).__name__}, which the engine openvino would not call; remove it, or use "
                "the engine torch"
            )
