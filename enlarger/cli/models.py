"""`enlarger models`: what lies in a folder of models, as AUTOMATIC1111 and ComfyUI lay theirs out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.options import AllowPickle, JsonLines
from enlarger.cli.terminal import print_lines

if TYPE_CHECKING:
    from enlarger.checkpoint.model_folder import ListedFile, ModelFolder

USES = {"model": "--model", "lora": "<lora:NAME:1>", "vae": "--vae"}  # how a role is asked for


def models(
    folder: Annotated[Path, typer.Argument(metavar="DIR", envvar="ENLARGER_MODELS_FOLDER", help="folder of models")],
    allow_pickle: AllowPickle = False,
    json_lines: JsonLines = False,
) -> None:
    """List a folder of models: each file by the name to ask for it, and what it is by its names and shapes."""
    from enlarger.checkpoint.model_folder import read_model_folder  # torch comes with it

    found = read_model_folder(folder, allow_pickle=allow_pickle)
    print_lines(_json_lines(found) if json_lines else _text_lines(found))


def _json_lines(found: "ModelFolder") -> list[str]:
    files = [
        {"name": file.name, "path": str(file.path), "role": file.role, "holds": file.holds, "bytes": file.num_bytes}
        | ({} if file.error is None else {"error": file.error})
        for file in found.files
    ]
    return [json.dumps(each) for each in [*files, *({"name": name, "role": "style"} for name in found.styles)]]


def _text_lines(found: "ModelFolder") -> list[str]:
    usable = [file for file in found.files if file.error is None]
    lines = [_text_line(file) for file in sorted(usable, key=lambda file: (file.role not in USES, file.role))]
    lines += [f"{file.name}: not usable: {file.error}" for file in found.files if file.error is not None]
    if found.styles:
        lines.append(f"styles: {', '.join(found.styles)}")
    return lines or [f"{found.path}: no models found"]


def _text_line(file: "ListedFile") -> str:
    use = f", {USES[file.role]}" if file.role in USES else ""
    return f"{file.name}: {file.holds}{use}, {file.num_bytes / 1e6:,.0f} MB"
