"""`enlarger inspect`: what a checkpoint is, from its names and shapes, without reading its weights."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enlarger.cli.options import JsonLines
from enlarger.errors import CheckpointError

if TYPE_CHECKING:
    from enlarger.checkpoint.files import Weights
    from enlarger.checkpoint.pickles import PickledWeights

UNITS = ("B", "KB", "MB", "GB", "TB")


def inspect(
    path: Annotated[str, typer.Argument(metavar="FILE", help="single file, folder, or name in the cache")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="open .ckpt and .pth files, through an allow-list")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="read all weights and name those that are no numbers")
    ] = False,
    json_lines: JsonLines = False,
) -> None:
    """Tell what a checkpoint is: family, parts, number formats, sizes, parameters, and what is odd about it."""
    from enlarger.hub.cache import resolve  # torch comes with what follows

    where = resolve(path)
    found = {"path": str(where), **(_folder(where, verify) if where.is_dir() else _file(where, allow_pickle, verify))}
    print(json.dumps(found) if json_lines else "\n".join(_lines(found)))
    if found.get("broken"):
        raise typer.Exit(1)


def _file(path: Path, allow_pickle: bool, verify: bool) -> dict[str, Any]:
    from enlarger.checkpoint.detect import detect
    from enlarger.checkpoint.files import open_file

    tensors = open_file(path, allow_pickle=allow_pickle)
    shapes = {name: tensors.shape(name) for name in tensors.names()}
    try:
        found = detect(shapes, path)
        told: dict[str, Any] = {
            "holds": found.text, "family": found.family, "layout": found.layout, "parts": list(found.components),
            "prediction": found.prediction or "unknown: the weights do not tell", "advice": found.advice or None,
            "averaged": "an averaged copy of the UNet is there too" if found.averaged else None,
        }  # fmt: skip
    except CheckpointError as error:
        told = {"holds": "nothing that is known here", "advice": str(error)}
    return told | _weights(tensors, verify) | {"metadata": dict(tensors.metadata) or None}


def _folder(path: Path, verify: bool) -> dict[str, Any]:
    from enlarger.checkpoint.files import open_weights
    from enlarger.checkpoint.folder import COMPONENTS, INDEX
    from enlarger.hub.cache import only_variant
    from enlarger.jsonfile import read_json

    if not (path / INDEX).is_file():
        raise CheckpointError(f"{path}: no {INDEX}; expected a model's folder, or a file of weights")
    index: dict[str, Any] = read_json(path / INDEX)
    listed: dict[str, Any] = {name: value for name, value in index.items() if isinstance(value, list)}
    kinds = {name: str(value[1]) for name, value in listed.items() if value[-1]}
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        parts[name] = {"class": kind}
        if kind in COMPONENTS:
            tensors = open_weights(path / name, COMPONENTS[kind].stem, only_variant(path))
            parts[name] |= _weights(tensors, verify)
    broken = [f"{name}: {weight}" for name, part in parts.items() for weight in part.get("broken") or ()]
    total = sum(part.get("parameters", 0) for part in parts.values())
    return {"holds": index.get("_class_name"), "parts": parts, "parameters": total, "broken": broken or None}


def _weights(tensors: "Weights | PickledWeights", verify: bool) -> dict[str, Any]:
    """Number formats, sizes and counts of a file or of all shards."""
    import math

    from enlarger.checkpoint.verify import non_finite

    formats: Counter[str] = Counter()
    parameters = size = 0
    for name in tensors.names():
        count, dtype = math.prod(tensors.shape(name)), tensors.dtype(name)
        formats[str(dtype).removeprefix("torch.")] += count
        parameters, size = parameters + count, size + count * dtype.itemsize
    broken = list(non_finite(tensors)) if verify else []
    return {
        "weights": len(tensors.names()), "parameters": parameters, "bytes": size, "formats": dict(formats),
        "notes": list(tensors.notes) or None, "broken": broken or None,
    }  # fmt: skip


def _lines(found: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif isinstance(value, list):
            yield f"{indent}{name}: {', '.join(map(str, value))}"  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif name == "bytes":
            yield f"{indent}size: {_readable(value)}"
        elif value is not None:
            yield f"{indent}{name}: {value:,}" if isinstance(value, int) else f"{indent}{name}: {value}"


def _readable(size: float) -> str:
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit takes all")
