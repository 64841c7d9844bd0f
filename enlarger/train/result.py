"""Where a training's result goes: what is there already, and how the result appears whole, with its card."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from enlarger.checkpoint.folder.save import atomic_folder, save_folder
from enlarger.errors import InputError
from enlarger.image.atomic_write import atomic_write
from enlarger.strict_json import parse_json
from enlarger.train.lora import save_lora
from enlarger.train.options import TrainOptions
from enlarger.train.start import Training, trained_components
from enlarger.train.state import TrainingStopped

LORA_NAME = "pytorch_lora_weights.safetensors"
RECORD_NAME = "result.json"  # in OUT.work: the files of the result, by which a training that goes on knows its own


def check_place(options: TrainOptions) -> None:
    """Raises InputError where the result would lie on something, or an earlier training's state would be lost.

    A training that goes on may replace its own earlier result, as long as nobody has changed it.
    """
    out, state, data = options.out, options.work / "state.safetensors", Path(options.data)
    if options.task != "lora" and out.suffix == ".safetensors":
        raise InputError(f"{out}: the result is a folder, only a LoRA is a file; leave the ending out")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise InputError(f"{out}: lies in the data, which would grow by its own samples; choose a place outside {data}")
    taken = next((path for path in _places(options) if path.exists() and not _is_empty_folder(path)), None)
    if taken is not None and not (options.resume and state.exists() and _is_own(options)):
        raise InputError(f"{taken}: already exists; choose another place for the result, or move it away")
    if state.exists() and not options.resume:
        raise InputError(f"{options.work}: holds the state of a training; add --resume to go on, or give another --out")


def write_result(options: TrainOptions, training: Training, module: nn.Module, readme: str) -> None:
    """The folder that diffusers loads, with its card; of a LoRA one file, and its card where it is a folder.

    Raises TrainingStopped where there is no room for it, and where something else lies there since.
    """
    if any(path.exists() and not _is_empty_folder(path) for path in _places(options)) and not _is_own(options):
        raise TrainingStopped(
            f"{options.out}: somebody wrote there while the training ran; move it away and go on with --resume"
        )
    try:
        if _is_file(options):
            _write_file(options, module, readme)
        else:
            _write_folder(options, training, module, readme)
    except OSError as error:
        raise TrainingStopped(
            f"{options.out}: the result could not be written ({error.strerror or error}); the state of the last step "
            "is kept: make room and go on with --resume"
        ) from error


def _write_file(options: TrainOptions, module: nn.Module, readme: str) -> None:
    weights, card = _places(options)
    weights.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(card, overwrite=_is_own(options)) as stream:
        stream.write(readme.encode())
    _record_files(options)  # so that one whose weights did not fit is known too
    save_lora(module, weights, options.lora, options.lora_layout)
    _record_files(options)


def _record_files(options: TrainOptions) -> None:
    _write_record(options, {path.name: _stamp(path) for path in _places(options) if path.exists()})


def _write_folder(options: TrainOptions, training: Training, module: nn.Module, readme: str) -> None:
    with atomic_folder(options.out) as folder:
        if options.task == "lora":
            save_lora(module, folder / LORA_NAME, options.lora, options.lora_layout)
        else:
            save_folder(trained_components(training, module), folder)
        (folder / "README.md").write_text(readme, "utf-8")
        _write_record(options, _stamps(folder))


def _is_file(options: TrainOptions) -> bool:
    return options.out.suffix == ".safetensors"


def _places(options: TrainOptions) -> tuple[Path, ...]:
    """What the result is: a folder, or a LoRA's weights and their card."""
    out = options.out
    return (out, out.with_suffix(".md")) if _is_file(options) else (out,)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_own(options: TrainOptions) -> bool:
    """Whether what is there is the result that this training wrote earlier, to the file."""
    record = options.work / RECORD_NAME
    if not record.is_file():
        return False
    present = [path for path in _places(options) if path.exists()]
    found = {path.name: _stamp(path) for path in present} if _is_file(options) else _stamps(options.out)
    return found == parse_json(record.read_text("utf-8"))


def _write_record(options: TrainOptions, stamps: Mapping[str, list[int]]) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.work / RECORD_NAME) as stream:
        stream.write(json.dumps(stamps).encode())


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Those of all files of a folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _stamp(path) for path in files}


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of the last change."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
