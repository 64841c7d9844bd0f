"""Files of other upscalers (ESRGAN, Compact, SwinIR, HAT, SPAN and the like), told apart and built by spandrel."""

import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.tensors.open import LazyTensors
from enlarger.errors import CheckpointError, Unsupported

CLASS_NAME = "PixelNetwork"  # what stands for them in a model's index
STATE_PREFIXES = ("params_ema.", "params-ema.", "params.", "model_state_dict.")  # dictionaries that trainers save in
WRAPPERS = ("module.", "netG.")  # prefixes of all names that trainers leave
INSTALL_HINT = (
    "reading such networks needs spandrel and the torchvision of this torch: pip install 'enlarger[spandrel]'"
)


class ImageModel(Protocol):
    """What is used of spandrel's `ImageModelDescriptor`. A call takes and gives (1, C, h, w) in 0..1."""

    model: nn.Module
    scale: int
    input_channels: int
    output_channels: int
    purpose: str
    tiling: Any  # an Enum: SUPPORTED, DISCOURAGED, INTERNAL
    supports_half: bool
    supports_bfloat16: bool

    @property
    def architecture(self) -> "Architecture": ...
    def __call__(self, image: Tensor) -> Tensor: ...


class Architecture(Protocol):
    """A kind of network that spandrel knows."""

    name: str

    def detect(self, state_dict: Mapping[str, Tensor]) -> bool: ...
    def load(self, state_dict: Mapping[str, Tensor]) -> ImageModel: ...


def find_architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture | None:
    """The architecture with weights of these names and shapes; None for none, and where spandrel is not installed."""
    try:
        registry = import_module("spandrel").MAIN_REGISTRY
    except (ImportError, RuntimeError):  # torch refuses a torchvision of another build with a RuntimeError
        return None
    names = state_names(shapes)
    state_dict = {name: torch.empty(shapes[key], device="meta") for name, key in names.items()}
    found = (one.architecture for one in registry.architectures("detection") if one.detect(state_dict))
    return next(found, None)


def read_pixel_network(path: Path, tensors: LazyTensors, dtype: torch.dtype | None) -> PipelineComponents:
    """The network of a file that `find_architecture` knows; `dtype` where the network allows for it, else float32.

    Raises CheckpointError for weights that do not fit, Unsupported for networks that do not enlarge colour pictures.
    """
    architecture = find_architecture({name: tensors.shape(name) for name in tensors.keys()})
    if architecture is None:
        raise Unsupported(f"{path}: holds an upscaler of the ESRGAN kind; {INSTALL_HINT}")
    names = state_names(tensors.keys())
    state_dict = {name: tensors.get_tensor(key, torch.float32) for name, key in names.items()}
    try:
        with warnings.catch_warnings():  # of torch, to spandrel's authors
            warnings.simplefilter("ignore")
            network = architecture.load(state_dict)
    except (RuntimeError, ValueError, KeyError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: looks like {architecture.name}, but does not fit it ({reason})") from error
    _require_enlarging(path, network)
    allowed = {torch.float16: network.supports_half, torch.bfloat16: network.supports_bfloat16}
    network.model.to(dtype if dtype is not None and allowed.get(dtype, True) else torch.float32).eval()
    return PipelineComponents(path, {"_class_name": CLASS_NAME}, {"network": network})


def state_names(keys: Mapping[str, object] | tuple[str, ...]) -> dict[str, str]:
    """The network's own names of its weights, each with the key in the file; the averaged copy where there are two."""
    prefix = next((p for p in STATE_PREFIXES if any(key.startswith(p) for key in keys)), "")
    names = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
    for wrapper in WRAPPERS:
        if names and all(name.startswith(wrapper) for name in names):
            names = {name.removeprefix(wrapper): key for name, key in names.items()}
    return names


def _require_enlarging(path: Path, network: ImageModel) -> None:
    name, channels = network.architecture.name, (network.input_channels, network.output_channels)
    if network.scale < 2:
        raise Unsupported(f"{path}: a {name} network that keeps the size; expected one that enlarges 2 times or more")
    if channels not in ((3, 3), (1, 1)):
        raise Unsupported(
            f"{path}: a {name} network from {channels[0]} channels to {channels[1]}; expected colour (3) or grey (1)"
        )
