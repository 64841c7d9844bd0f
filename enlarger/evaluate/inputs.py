"""What tells apart the files that an evaluation's pictures follow from, so that it never goes on with others."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from enlarger.checkpoint.model_folder import checkpoint_path
from enlarger.errors import InputError
from enlarger.hub.cache import resolve
from enlarger.image.digest import file_sha256
from enlarger.runtime.choices import resolve_device, resolve_dtype
from enlarger.tasks.loading.load import Location, as_checkpoint

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pth", ".pt")
CONFIG_SUFFIXES = (".json", ".txt")  # of a model's folder, with the merges of its tokenizer

BRACKETS = re.compile(r"[()\[\]\\]")


def model_digest(location: Location) -> str:
    """SHA-256 of a model's configs, and of the sizes and times of its files of weights, which are not read.

    Raises CheckpointError where there is no such model.
    """
    checkpoint = as_checkpoint(location)
    parts = [checkpoint.vae, checkpoint.text_encoder, checkpoint.config]
    parts += [checkpoint.text_encoder_2, *(path for path, _ in checkpoint.loras)]
    parts += [style if isinstance(style, str | Path) else style[0] for style in checkpoint.inversions]
    paths = [resolve(checkpoint_path(checkpoint.models, checkpoint.path))]
    paths += [Path(part) for part in parts if isinstance(part, str | Path)]
    stated = (checkpoint.variant, checkpoint.prediction, list(checkpoint.loras), list(checkpoint.inversions))
    digest = hashlib.sha256(repr(stated).encode())
    for root in paths:
        for file in _model_files(root):
            stat = file.stat()
            said = f"{stat.st_size} {stat.st_mtime_ns}".encode() if _is_weights(file) else file.read_bytes()
            digest.update(f"{file.relative_to(root).as_posix()} {len(said)} ".encode() + said)
    return digest.hexdigest()


def _model_files(root: Path) -> Iterator[Path]:
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.is_file() and (file == root or _is_weights(file) or file.suffix in CONFIG_SUFFIXES):
            yield file


def _is_weights(file: Path) -> bool:
    return file.suffix in WEIGHT_SUFFIXES


def files_digest(named: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 of names and contents. Raises InputError for a file that cannot be read."""
    digest = hashlib.sha256()
    for name, file in named:
        try:
            digest.update(f"{name}\0{file_sha256(file)}\0".encode())
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or error}); mend it or take it away") from error
    return digest.hexdigest()


def stated_precision(precision: str, device: str) -> str:
    """What "auto" stands for on a device."""
    return str(resolve_dtype(precision, resolve_device(device))).removeprefix(torch.__name__ + ".")


def as_words(caption: str) -> str:
    """A prompt that is told as it stands: its brackets weigh nothing."""
    return BRACKETS.sub(r"\\\g<0>", caption)
