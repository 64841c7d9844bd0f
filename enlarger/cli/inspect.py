"""`enlarger inspect`: what a checkpoint is, from its names and shapes, without reading its weights."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.options import AllowPickle, JsonLines
from enlarger.cli.terminal import print_lines
from enlarger.errors import CheckpointError, EnlargerError
from enlarger.strict_json import Json

if TYPE_CHECKING:
    from enlarger.checkpoint.tensors.pickle_guard import PickleCheckpoint
    from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint

UNITS = ("B", "KB", "MB", "GB", "TB")


def inspect(
    path: Annotated[str, typer.Argument(metavar="FILE", help="single file, folder, name in the cache, or picture")],
    allow_pickle: AllowPickle = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="read all weights and name those that are no numbers")
    ] = False,
    json_lines: JsonLines = False,
) -> None:
    """Show what a checkpoint is: family, parts, number formats, sizes, parameters, and anything unusual.

    Of a picture: what made it, and what metadata is in it.
    """
    if _is_picture(Path(path)):
        picture = {"path": path} | _picture(Path(path))
        print_lines([json.dumps(picture)] if json_lines else _format_lines(picture))
        return
    from enlarger.hub.cache import resolve  # torch comes with what follows

    resolved = resolve(path)
    summary = {
        "path": str(resolved),
        **(_folder(resolved, verify) if resolved.is_dir() else _file(resolved, allow_pickle, verify)),
    }
    print_lines([json.dumps(summary)] if json_lines else _format_lines(summary))
    if summary.get("broken"):
        raise typer.Exit(1)


def _is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, or by its first bytes."""
    from enlarger.cli.inputs import IMAGE_SUFFIXES
    from enlarger.image.damage import is_webp
    from enlarger.image.decode import MAGIC_BYTES

    if not os.path.isfile(path) or path.suffix.lower() in IMAGE_SUFFIXES:
        return os.path.isfile(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False  # it is said where it is opened as a checkpoint
    is_known = head.startswith((b"\xff\xd8\xff", *(magic for magic in MAGIC_BYTES if len(magic) > 2)))
    return is_known or is_webp(head)  # two bytes alone begin files of weights too


def _picture(path: Path) -> Json:
    from enlarger.image.decode import decode_error, open_image
    from enlarger.image.generation import describe_file

    with open_image(path, any_size=True) as (image, name):
        try:
            return describe_file(image)
        except Exception as error:  # decoders raise anything on damaged files
            raise decode_error(name, error) from error


def _file(path: Path, allow_pickle: bool, verify: bool) -> Json:
    from enlarger.checkpoint.single_file.detect import detect
    from enlarger.checkpoint.single_file.load import extra_keys
    from enlarger.checkpoint.tensors.open import open_checkpoint

    tensors = open_checkpoint(path, allow_pickle=allow_pickle)
    shapes = {name: tensors.shape(name) for name in tensors.keys()}
    try:
        detected = detect(shapes, path)
        summary: Json = {
            "holds": detected.description,
            "family": detected.family,
            "layout": detected.layout,
            "parts": list(detected.components),
            "prediction": detected.prediction_type or "unknown: the weights do not say",
            "advice": detected.advice or None,
            "averaged": "an averaged copy of the UNet is there too" if detected.has_ema else None,
            "extra": list(extra_keys(detected, tensors)) or None,
        }
    except CheckpointError as error:
        summary = {"holds": "nothing that is known here", "advice": str(error)}
    return summary | _summarize_weights(tensors, verify) | {"metadata": dict(tensors.metadata) or None}


def _folder(path: Path, verify: bool) -> Json:
    from enlarger.checkpoint.components import COMPONENT_CLASSES
    from enlarger.checkpoint.folder.describe import component_class_names, folder_index
    from enlarger.checkpoint.tensors.open import open_weights
    from enlarger.hub.cache import snapshot_variant

    index, components = folder_index(path), Json()
    for name, class_name in component_class_names(path).items():
        components[name] = {"class": class_name}
        if class_name in COMPONENT_CLASSES:
            tensors = open_weights(path / name, COMPONENT_CLASSES[class_name].weights_stem, snapshot_variant(path))
            components[name] |= _summarize_weights(tensors, verify)
    non_finite_weights = [
        f"{name}: {weight}" for name, component in components.items() for weight in component.get("broken") or ()
    ]
    total = sum(part.get("parameters", 0) for part in components.values())
    return {
        "holds": index.get("_class_name"),
        **_describe_kind(path),
        "parts": components,
        "parameters": total,
        "broken": non_finite_weights or None,
    }


def _describe_kind(path: Path) -> Json:
    """Which kind of model a folder's is."""
    from enlarger.checkpoint.folder.describe import folder_kind

    try:
        return {"kind": folder_kind(path).description}
    except EnlargerError as error:
        return {"kind": "none that is known here", "advice": str(error)}


def _summarize_weights(tensors: "SafetensorsCheckpoint | PickleCheckpoint", verify: bool) -> Json:
    """Number formats, sizes and counts of a file or of all shards."""
    import math

    from enlarger.checkpoint.tensors.finite_check import find_non_finite

    formats: Counter[str] = Counter()
    parameters = size = 0
    for name in tensors.keys():
        count, dtype = math.prod(tensors.shape(name)), tensors.dtype(name)
        formats[str(dtype).removeprefix("torch.")] += count
        parameters, size = parameters + count, size + count * dtype.itemsize
    non_finite_names = list(find_non_finite(tensors)) if verify else []
    return {
        "weights": len(tensors.keys()),
        "parameters": parameters,
        "bytes": size,
        "formats": dict(formats),
        "notes": list(tensors.notes) or None,
        "broken": non_finite_names or None,
    }


def _format_lines(summary: Json, indent: str = "") -> Iterator[str]:
    for name, value in summary.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _format_lines(value, indent + "  ")  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif isinstance(value, list):
            yield f"{indent}{name}: {', '.join(map(str, value))}"  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif name == "bytes":
            yield f"{indent}size: {_format_bytes(value)}"
        elif value is not None:
            yield f"{indent}{name}: {value:,}" if isinstance(value, int) else f"{indent}{name}: {value}"


def _format_bytes(size: float) -> str:
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit takes all")
