"""Which checkpoint to read, and how: a folder, a single file, or a name in the cache."""

from dataclasses import dataclass
from pathlib import Path

import torch

from enlarger.checkpoint.elsewhere import Source
from enlarger.checkpoint.folder import Bundle, read_folder
from enlarger.checkpoint.single import read_single_file
from enlarger.errors import InputError
from enlarger.hub.cache import only_variant, resolve


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is, and what its files do not say themselves.

    `variant` chooses among a folder's weight files. The others are for single files, see `read_single_file`:
    `prediction` is what the UNet predicts, `allow_pickle` opens `.ckpt` and `.pth`, `vae` and `text_encoder` stand in
    for parts, `config` is a folder in diffusers' layout whose JSON files replace the bundled ones.
    """

    path: str | Path
    variant: str | None = None
    prediction: str | None = None
    allow_pickle: bool = False
    vae: Source | None = None
    text_encoder: Source | None = None
    config: str | Path | None = None

    def __str__(self) -> str:
        return str(self.path)

    def open(self, dtype: torch.dtype | None = None) -> Bundle:
        """Its parts; `dtype` converts floating weights while reading. Nothing is downloaded.

        Raises CheckpointError naming the file for all that is missing, damaged or unknown.
        """
        path = resolve(self.path)
        if not path.is_dir():
            if self.variant is not None:
                raise InputError(f"variant is {self.variant!r}, but {path} is a single file; leave it out")
            return read_single_file(
                path, dtype=dtype, prediction=self.prediction, allow_pickle=self.allow_pickle, vae=self.vae,
                text_encoder=self.text_encoder, config=self.config,
            )  # fmt: skip
        names = ("prediction", "vae", "text_encoder", "config")
        given = {name: getattr(self, name) for name in names}
        unused = [name for name, value in given.items() if value is not None]
        if unused or self.allow_pickle:
            named = ", ".join(unused or ["allow_pickle"])
            raise InputError(f"{named}: for single files only, and {path} is a folder; leave it out")
        return read_folder(path, only_variant(path) if self.variant is None else self.variant, dtype)


Location = str | Path | Checkpoint


def checkpoint_at(location: Location) -> Checkpoint:
    """A path or a name as a checkpoint to be read plainly."""
    return location if isinstance(location, Checkpoint) else Checkpoint(location)
