"""Parts of k-diffusion, loaded without its package file, which imports training tools that the tests do not have."""

import csv
import gzip
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

TRAINING_ONLY = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "dctorch",
    "dctorch.functional",
)
KEY_MAP = Path(__file__).parents[1] / "data" / "reference" / "k_upscaler_unet.tsv.gz"


def load(name: str) -> ModuleType:
    """The module `k_diffusion.<name>`, such as `layers`, `models.image_v1` or `sampling`; skips where it is absent."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            pytest.skip("k-diffusion is not installed")
        for package in ("k_diffusion", "k_diffusion.models"):
            folders = [str(Path(f, *package.split(".")[1:])) for f in spec.submodule_search_locations or ()]
            sys.modules[package] = _package(package, folders)
    stubs = {stub: _package(stub, []) for stub in TRAINING_ONLY if not _importable(stub)}
    _link(stubs)
    sys.modules.update(stubs)
    try:
        return importlib.import_module(f"k_diffusion.{name}")
    finally:
        for stub in stubs:  # other libraries ask whether torchvision is there
            del sys.modules[stub]


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def _package(name: str, folders: list[str]) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = folders
    return module


def _link(stubs: Mapping[str, ModuleType]) -> None:
    """Make `from package import part` find the stub of the part."""
    for name, module in stubs.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, module)


def to_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the original network with four levels of four layers (no prefix) under our names."""
    with gzip.open(KEY_MAP, "rt") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["transform"] != "dropped"]
    ours: dict[str, Tensor] = {}
    for row in rows:
        tensor = weights[row["original_key"].removeprefix("inner_model.")]
        for step in row["transform"].split("; "):
            tensor = _transform(tensor, step)
        ours[row["target_key"]] = tensor
    return ours


def _transform(tensor: Tensor, step: str) -> Tensor:
    if step.startswith("chunk["):  # chunk[index/parts] dim0
        index, parts = step.removeprefix("chunk[").partition("]")[0].split("/")
        return torch.chunk(tensor, int(parts))[int(index)]
    if step.startswith("squeeze"):
        return tensor.flatten(1) if tensor.dim() == 4 else tensor.flatten()
    assert step == "-", step
    return tensor
