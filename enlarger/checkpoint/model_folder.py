"""A folder of models as AUTOMATIC1111 and ComfyUI lay theirs out: what lies in it is told apart by shapes."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from enlarger.checkpoint.components import MODEL_INDEX_NAME
from enlarger.checkpoint.families import FAMILIES
from enlarger.checkpoint.folder.describe import folder_kind
from enlarger.checkpoint.single_file.detect import PIXEL_NETWORK, detect
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.errors import CheckpointError, EnlargerError, InputError
from enlarger.text.styles import STYLES_FILE, Style, read_styles, unknown_name

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
MODEL, LORA = "model", "lora"  # roles that are asked for by name; other roles are what `detect` calls the file
MAX_DEPTH = 6  # of folders in the folder
MAX_FILES = 2000
CONFIG_FOLDERS = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True)
class ListedFile:
    """A file of weights, or a folder in diffusers' layout, as its names and shapes tell."""

    name: str  # what it is asked for by: the file's, without its ending, behind its folder where two share it
    path: Path
    role: str  # model, lora, vae, textual_inversion ...; "" where it cannot be used
    holds: str  # what it is, in words
    num_bytes: int
    error: str | None = None  # why it cannot be used


@dataclass(frozen=True)
class ModelFolder:
    """The models, LoRAs and styles of a folder, by name."""

    path: Path  # that of the styles where they are alone
    files: tuple[ListedFile, ...] = field(default=(), repr=False)
    styles: Mapping[str, Style] = field(default_factory=dict[str, Style], repr=False)
    allow_pickle: bool = False
    styles_file: Path | None = None  # where one was named

    def find(self, name: str, role: str) -> Path:
        """The file of a role by its name, with or without its folder and ending. Raises InputError, naming others."""
        candidates = [file for file in self.files if file.role == role]
        for fold in (str, str.casefold):
            found = [file for file in candidates if fold(name) in {fold(each) for each in self._names(file)}]
            if len(found) == 1:
                return found[0].path
            if found:
                names = ", ".join(file.name for file in found)
                raise InputError(f"{len(found)} files of {self.path} are called {name!r}; say which: {names}")
        unusable = next((file for file in self.files if file.error and name in self._names(file)), None)
        if unusable is not None:
            raise InputError(f"{unusable.path}: {unusable.error}")
        raise InputError(f"{self.path}: {unknown_name(role, name, [file.name for file in candidates])}")

    def _names(self, file: ListedFile) -> set[str]:
        relative = file.path.relative_to(self.path)
        return {file.name, file.path.name, file.path.stem, relative.as_posix(), relative.with_suffix("").as_posix()}


def read_model_folder(path: str | Path, *, allow_pickle: bool = False, styles: str | Path | None = None) -> ModelFolder:
    """All that lies in a folder and its subfolders; only names and shapes are read.

    `allow_pickle` looks into `.ckpt`, `.pt` and `.pth` files too. `styles` is a CSV file; None: `styles.csv` in the
    folder, or beside it. Raises InputError for a folder that is not there.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one of models, such as models of a web UI")
    listed = [_describe(found, allow_pickle) for found in _find(root)]
    stems = Counter(file.name for file in listed)
    files = tuple(
        replace(file, name=file.path.relative_to(root).with_suffix("").as_posix()) if stems[file.name] > 1 else file
        for file in listed
    )
    beside = (root / STYLES_FILE, root.parent / STYLES_FILE)
    named = None if styles is None else Path(styles)
    found = next((each for each in beside if each.is_file()), None) if named is None else named
    return ModelFolder(root, files, {} if found is None else read_styles(found), allow_pickle, named)


def _find(root: Path) -> Iterator[Path]:
    """Files of weights, and folders with a model_index.json as one, in the order of their names."""
    count, seen = 0, set[str]()
    for place, folders, files in os.walk(root, followlinks=True):
        folder, real = Path(place), os.path.realpath(place)
        if real in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        depth = len(folder.relative_to(root).parts)
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in CONFIG_FOLDERS)
        if MODEL_INDEX_NAME in files and folder != root:
            folders.clear()
            yield folder
            continue
        if depth >= MAX_DEPTH:
            folders.clear()
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                count += 1
                if count > MAX_FILES:
                    raise InputError(f"{root}: found more than {MAX_FILES:,} files of weights; name a smaller folder")
                yield folder / name


def _describe(path: Path, allow_pickle: bool) -> ListedFile:
    """What a file or folder is; whatever is wrong with it is said in its entry and costs the others nothing."""
    name = path.name if path.is_dir() else path.stem
    try:
        if path.is_dir():
            num_bytes = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
            return ListedFile(name, path, MODEL, folder_kind(path).label, num_bytes)
        tensors, num_bytes = open_checkpoint(path, allow_pickle=allow_pickle), path.stat().st_size
        detected = detect({key: tensors.shape(key) for key in tensors.keys()}, path.name)
    except (EnlargerError, OSError) as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
        return ListedFile(name, path, "", "nothing that can be used here", 0, reason)
    if detected.kind == MODEL and detected.family is not None:
        return ListedFile(name, path, MODEL, FAMILIES[detected.family].label, num_bytes)
    if detected.kind == PIXEL_NETWORK:
        return ListedFile(name, path, MODEL, detected.description, num_bytes)
    return ListedFile(name, path, detected.kind, detected.description, num_bytes)


def checkpoint_path(folder: ModelFolder | None, name: str | Path) -> str | Path:
    """The file of a model's name in a folder of models; without one, or for an existing path, what was given.

    Raises CheckpointError for a name that the folder does not have.
    """
    path = Path(name).expanduser()
    is_other_folder = os.path.isdir(path) and not (path / MODEL_INDEX_NAME).is_file()  # such as by results of a run
    if folder is None or (os.path.exists(path) and not is_other_folder):
        return name
    try:
        return folder.find(str(name), MODEL)
    except InputError as error:
        if os.path.exists(path):
            return name
        raise CheckpointError(str(error)) from error
