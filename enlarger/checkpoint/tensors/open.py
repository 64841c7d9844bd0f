"""Opening weights: safetensors, its shards, or a pickle where that is allowed."""

from collections import Counter
from pathlib import Path
from typing import Protocol, overload

import torch
from torch import Tensor

from enlarger.checkpoint.tensors.pickle_guard import (
    ALLOW_PICKLE_HINT,
    PICKLE_SUFFIXES,
    PickleCheckpoint,
    open_pickle,
    pickle_refused_message,
)
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint, open_safetensors, size_and_magic
from enlarger.errors import CheckpointError, list_names
from enlarger.strict_json import is_object, read_json

WEIGHTS_STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' file names, without their endings
PICKLE_STEMS = {"model": "pytorch_model"}  # of transformers' pickled files
PICKLE_MAGIC = (b"PK", b"\x80", b"7z\xbc\xaf")  # how torch's files begin, new and old, and what pretends to be one

OTHER_MAGIC = {
    b"GGUF": "a file of GGUF, quantised for stable-diffusion.cpp and ComfyUI-GGUF",
    b"\x89HDF": "a file of HDF5, as Keras writes it",
    b"\x08\x07\x12": "a network of ONNX",
    b"<!DOC": "a web page, which a download left in the place of the file",
    b"<html": "a web page, which a download left in the place of the file",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"RIFF": "a picture (WebP) or a sound",
    b"II*\0": "a picture (TIFF)",
    b"MM\0*": "a picture (TIFF)",
    b"8BPS": "a picture (Photoshop)",
    b"version h": "a pointer of Git LFS, in the place of the file itself",
}


class LazyTensors(Protocol):
    """Named tensors, whatever holds them; what `load_module` makes a network of."""

    @property
    def path(self) -> Path: ...
    def keys(self) -> tuple[str, ...]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def get_tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor: ...


@overload
def open_weights(
    folder: Path, stem: str | None = None, variant: str | None = None, *, mmap: bool = False
) -> SafetensorsCheckpoint: ...
@overload
def open_weights(
    folder: Path, stem: str | None = None, variant: str | None = None, *, allow_pickle: bool, mmap: bool = False
) -> SafetensorsCheckpoint | PickleCheckpoint: ...
def open_weights(
    folder: Path, stem: str | None = None, variant: str | None = None, *, allow_pickle: bool = False, mmap: bool = False
) -> SafetensorsCheckpoint | PickleCheckpoint:
    """The weights in a component's folder: `stem[.variant].safetensors`, or the shards that an index lists.

    `stem` None tries the usual ones. `allow_pickle` takes the old `.bin` file where there are no safetensors, `mmap`
    leaves the tensors in their files. Raises `CheckpointError` saying what lies there instead.
    """
    stems = WEIGHTS_STEMS if stem is None else (stem,)
    for name in stems:
        single, index = weights_filenames(name, variant)
        if (folder / single).is_file():
            return open_safetensors(folder / single, mmap=mmap)
        if (folder / index).is_file():
            return _open_shards(folder / index, mmap=mmap)
    for name in stems if allow_pickle else ():
        if (folder / pickle_filename(name, variant)).is_file():
            return open_checkpoint(folder / pickle_filename(name, variant), allow_pickle=True)
    raise CheckpointError(_missing_weights_message(folder, variant, allow_pickle))


def weights_filenames(stem: str, variant: str | None) -> tuple[str, str]:
    """The names of a whole file and of an index of shards."""
    infix = "" if variant is None else f".{variant}"
    return f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"


def pickle_filename(stem: str, variant: str | None) -> str:
    """The name of a whole pickled file; transformers' have another stem than its safetensors."""
    infix = "" if variant is None else f".{variant}"
    return f"{PICKLE_STEMS.get(stem, stem)}{infix}.bin"


@overload
def open_checkpoint(path: Path, *, mmap: bool = False) -> SafetensorsCheckpoint: ...
@overload
def open_checkpoint(
    path: Path, *, allow_pickle: bool, mmap: bool = False
) -> SafetensorsCheckpoint | PickleCheckpoint: ...
def open_checkpoint(
    path: Path, *, allow_pickle: bool = False, mmap: bool = False
) -> SafetensorsCheckpoint | PickleCheckpoint:
    """One file of weights: safetensors, or a pickle where `allow_pickle` says so. Its content decides, not its name.

    `mmap` leaves the tensors of safetensors in the file; those of a pickle are copied. Raises `CheckpointError` naming
    the file, and the tensor where one is concerned, for all that is damaged.
    """
    if is_pickle(path):
        if not allow_pickle:
            raise CheckpointError(pickle_refused_message(path))
        return open_pickle(path)
    if (kind := _other_container(path)) is not None:
        raise CheckpointError(f"{path}: found {kind}, expected safetensors; fetch the model in that format.")
    return open_safetensors(path, mmap=mmap)


def _other_container(path: Path) -> str | None:
    """What a file of another format is, by its first bytes; None where they do not tell."""
    _, magic = size_and_magic(path)
    return next((kind for begin, kind in OTHER_MAGIC.items() if magic.startswith(begin)), None)


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle by its first bytes, or by its name where they do not tell."""
    _, magic = size_and_magic(path)
    is_safetensors = magic[8:] == b"{"
    return not is_safetensors and (magic.startswith(PICKLE_MAGIC) or path.suffix.lower() in PICKLE_SUFFIXES)


def _open_shards(index: Path, *, mmap: bool) -> SafetensorsCheckpoint:
    weight_map = read_json(index).get("weight_map")
    if not is_object(weight_map) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map; expected the file of each weight.")
    shard_names = {key: str(place) for key, place in weight_map.items()}
    shards = {name: open_safetensors(_shard_path(index, name)) for name in sorted(set(shard_names.values()))}
    tensor_infos = {key: entry for file in shards.values() for key, entry in file.tensor_infos.items()}
    mismatched = sorted(set(tensor_infos) ^ set(shard_names))
    mismatched += [
        key for key, count in Counter(key for file in shards.values() for key in file.keys()).items() if count > 1
    ]
    mismatched += [
        key
        for key, place in shard_names.items()
        if key in tensor_infos and tensor_infos[key].file != shards[place].path
    ]
    if mismatched:
        raise CheckpointError(f"{index}: the index and the shards disagree about {list_names(mismatched)}.")
    shard_metadata = [file.metadata for file in shards.values()]
    return SafetensorsCheckpoint(
        index,
        tensor_infos,
        {key: text for key, text in shard_metadata[0].items() if all(each.get(key) == text for each in shard_metadata)},
        mapped_files={} if mmap else None,
    )


def _shard_path(index: Path, name: str) -> Path:
    """The file beside the index; a name that leads elsewhere is refused."""
    if not name.endswith(".safetensors") or name.startswith(".") or set(name) & set("/\\:\0"):
        raise CheckpointError(f"{index}: shard {name!r} is not the name of a safetensors file in the same folder.")
    if not (index.parent / name).is_file():
        raise CheckpointError(f"{index.parent / name}: this shard is missing; {index.name} lists it.")
    return index.parent / name


def _missing_weights_message(folder: Path, variant: str | None, allow_pickle: bool) -> str:
    filenames = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    wanted = "weights" if variant is None else f"weights of variant {variant!r}"
    tensors = [
        name for name in filenames if name.endswith((".safetensors", ".json")) and name.startswith(WEIGHTS_STEMS)
    ]
    pickles = [name for name in filenames if name.endswith(PICKLE_SUFFIXES)]
    if tensors:
        return f"{folder}: no {wanted}, but {', '.join(tensors)}; choose the variant that is there, or none."
    if pickles and not allow_pickle:
        return (
            f"{folder}: found only {', '.join(pickles)}, pickles, programs that run when opened. {ALLOW_PICKLE_HINT}."
        )
    expected = " or ".join(weights_filenames(stem, variant)[0] for stem in WEIGHTS_STEMS)
    pickle_text = (
        f", or {' or '.join(pickle_filename(stem, variant) for stem in WEIGHTS_STEMS)}" if allow_pickle else ""
    )
    found_text = f"found only {', '.join(pickles)}; " if pickles else ""
    return f"{folder}: no {wanted}; {found_text}expected {expected}{pickle_text}."
