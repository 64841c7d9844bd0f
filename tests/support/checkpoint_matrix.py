"""Tiny models in every container, layout, number format and company, read, written back and compared."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.checkpoint.single_file.save import original_state_dict, save_single_file
from tests.support.single import FAMILIES, tiny_single

CONTAINERS = ("safetensors", "ckpt", "ckpt with state_dict", "folder")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EXTRAS = ("none", "loss", "prefix", "words")
LOSSES = {"first_stage_model.loss.logvar": torch.zeros(1), "merge_recipe": torch.zeros(3)}


@dataclass(frozen=True)
class Cell:
    """One combination."""

    family: str
    container: str
    dtype: torch.dtype
    extra: str


def cells() -> Iterator[Cell]:
    return (Cell(*each) for each in product(FAMILIES, CONTAINERS, DTYPES, EXTRAS))


def round_trip(cell: Cell, folder: Path) -> str | None:
    """Write the cell's model, read it, write that and read it again; what differs, or None."""
    made = tiny_single(cell.family)
    for part in made.components.values():
        if isinstance(part, nn.Module):
            part.to(cell.dtype)
    other_folder = {n: made.components[n] for n in ("vae", "text_encoder")} if cell.family == "x2" else {}
    prediction = "v_prediction" if cell.family == "sd2" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = _read(cell, made, folder, other_folder, prediction)
        back = save_single_file(first, folder / "back.safetensors")
        second = read_single_file(back, prediction=prediction, **other_folder)
    for found, step in ((first, "read"), (second, "written back")):
        if (difference := _difference(made, found)) is not None:
            return f"{step}: {difference}"
    return None


def _read(
    cell: Cell, made: PipelineComponents, folder: Path, other_folder: dict[str, nn.Module], prediction: str | None
) -> PipelineComponents:
    if cell.container == "folder":
        return read_folder(save_folder(made, folder / "model"))
    tensors: dict[str, Tensor] = {name: each.contiguous() for name, each in original_state_dict(made).items()}
    tensors |= LOSSES if cell.extra == "loss" else {}
    if cell.extra == "prefix":
        tensors = {f"model.{name}": each for name, each in tensors.items()}
    path = folder / f"model.{cell.container[:4] if cell.container != 'safetensors' else 'safetensors'}"
    if cell.container == "safetensors":
        save_file(tensors, path, {"modelspec.title": "tiny"} if cell.extra == "words" else None)
    else:
        whole = {"state_dict": tensors} if "state_dict" in cell.container else tensors
        torch.save(whole | ({"epoch": 3, "hparams": {"lr": {1e-4}}} if cell.extra == "words" else {}), path)
    return read_single_file(path, allow_pickle=True, prediction=prediction, **other_folder)


def _difference(made: PipelineComponents, found: PipelineComponents) -> str | None:
    for name, part in made.components.items():
        if isinstance(part, nn.Module):
            expected, got = part.state_dict(), found.components[name].state_dict()
            odd = [key for key in expected.keys() | got.keys() if key not in got or not got[key].equal(expected[key])]
            if odd:
                return f"{name}: {len(odd)} weights differ, {min(odd)} first"
    return None
