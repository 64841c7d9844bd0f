"""Tiny models in every container, layout, number format and company: read, inspected, converted, and back."""

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
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
from enlarger.cli.convert import convert
from enlarger.cli.inspect import inspect
from tests.support.single import FAMILIES, tiny_single

CONTAINERS = ("safetensors", "ckpt", "ckpt with state_dict", "folder", "ckpt of protocol 4", "ckpt before 1.6")
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
    """Write the cell's model, read it, write that and read it again; likewise with commands; what differs, or None."""
    made = tiny_single(cell.family)
    for part in made.components.values():
        if isinstance(part, nn.Module):
            part.to(cell.dtype)
    other_folder = {n: made.components[n] for n in ("vae", "text_encoder")} if cell.family == "x2" else {}
    prediction = "v_prediction" if cell.family == "sd2" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = _written(cell, made, folder)
        first = _read(path, other_folder, prediction)
        back = save_single_file(first, folder / "back.safetensors")
        second = read_single_file(back, prediction=prediction, **other_folder)
        by_commands = _through_commands(cell, made, path, prediction)
    steps = {"read": first, "written back": second, "converted": by_commands[0], "converted back": by_commands[1]}
    for step, found in steps.items():
        if (difference := _difference(made, found)) is not None:
            return f"{step}: {difference}"
    return _inspected(path)


def _written(cell: Cell, made: PipelineComponents, folder: Path) -> Path:
    if cell.container == "folder":
        return save_folder(made, folder / "model")
    tensors: dict[str, Tensor] = {name: each.contiguous() for name, each in original_state_dict(made).items()}
    tensors |= LOSSES if cell.extra == "loss" else {}
    if cell.extra == "prefix":
        tensors = {f"model.{name}": each for name, each in tensors.items()}
    path = folder / f"model.{cell.container[:4] if cell.container != 'safetensors' else 'safetensors'}"
    if cell.container == "safetensors":
        save_file(tensors, path, {"modelspec.title": "tiny"} if cell.extra == "words" else None)
        return path
    whole = {"state_dict": tensors} if "state_dict" in cell.container else tensors
    is_legacy = cell.container.endswith("before 1.6")
    torch.save(
        whole | ({"epoch": 3, "hparams": {"lr": {1e-4}}} if cell.extra == "words" else {}), path,
        _use_new_zipfile_serialization=not is_legacy, pickle_protocol=4 if cell.container.endswith("protocol 4") else 2,
    )  # fmt: skip
    return path


def _read(path: Path, other_folder: dict[str, nn.Module], prediction: str | None) -> PipelineComponents:
    if path.is_dir():
        return read_folder(path)
    return read_single_file(path, allow_pickle=True, prediction=prediction, **other_folder)


def _through_commands(
    cell: Cell, made: PipelineComponents, path: Path, prediction: str | None
) -> tuple[PipelineComponents, PipelineComponents]:
    """`enlarger convert` to the other layout, and back again."""
    parts = save_folder(made, path.parent / "parts") if cell.family == "x2" else None
    single, folder = path.parent / "converted.safetensors", path.parent / "converted"
    targets = (single, folder) if path.is_dir() else (folder, single)
    found = list[PipelineComponents]()
    for source, target in ((path, targets[0]), (targets[0], targets[1])):
        options = {} if source.is_dir() else {"prediction": prediction, "vae": parts, "text_encoder": parts}
        with redirect_stdout(io.StringIO()):
            convert(str(source), target, allow_pickle=not source.is_dir(), **options)
        other_folder = {n: made.components[n] for n in ("vae", "text_encoder")} if cell.family == "x2" else {}
        found.append(_read(target, other_folder, prediction))
    return found[0], found[1]


def _inspected(path: Path) -> str | None:
    """What `enlarger inspect` does not know of a file or folder that is read; None where it knows it."""
    with redirect_stdout(io.StringIO()) as printed:
        inspect(str(path), allow_pickle=True, json_lines=True)
    summary = json.loads(printed.getvalue())
    unknown = summary["holds"].startswith("nothing") or str(summary.get("kind")).startswith("none")
    return f"inspect: {summary['holds']}" if unknown or not summary["parameters"] else None


def _difference(made: PipelineComponents, found: PipelineComponents) -> str | None:
    for name, part in made.components.items():
        if isinstance(part, nn.Module):
            expected, got = part.state_dict(), found.components[name].state_dict()
            odd = [key for key in expected.keys() | got.keys() if key not in got or not got[key].equal(expected[key])]
            if odd:
                return f"{name}: {len(odd)} weights differ, {min(odd)} first"
    return None
