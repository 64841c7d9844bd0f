"""Which files a run reads and which it writes, settled and checked before anything is computed."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError
from enlarger.saving import SUFFIXES, check_output

PICTURES = frozenset({*SUFFIXES, ".gif"})  # what is taken from a folder; a file named by the user may be anything


@dataclass(frozen=True)
class Job:
    """One picture, the files to write for it, and the reason why not if it cannot be done."""

    input: Path
    outputs: tuple[Path, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Naming:
    """Where results go: beside the input, into `folder`, or to `file`; `count` of them, named `NAME-LABEL[-K].png`."""

    label: str
    count: int = 1
    folder: Path | None = None
    file: Path | None = None

    def outputs(self, entry: "Found", suffix: bool = False) -> tuple[Path, ...]:
        """The files to make of an input; NAME is that of the input, without its suffix unless `suffix` is true."""
        folder = entry.path.parent if self.folder is None else self.folder / entry.below
        name = entry.path.name if suffix else entry.path.stem
        first = folder / f"{name}-{self.label}.png" if self.file is None else self.file
        if self.count == 1:
            return (first,)
        return tuple(first.with_name(f"{first.stem}-{k}{first.suffix}") for k in range(1, self.count + 1))


def naming(inputs: Sequence[Path], output: Path | None, label: str, count: int) -> Naming:
    """What `--output` means: the name of a file if there is one input file, else a folder.

    Raises InputError if it names one file for several inputs.
    """
    if output is None:
        return Naming(label, count)
    several = len(inputs) > 1 or os.path.isdir(inputs[0])
    if os.path.isdir(output) or not output.suffix:
        return Naming(label, count, folder=output)
    if several and output.suffix.lower() in SUFFIXES:
        raise InputError(f"--output {output} names one file, but there are several inputs; give a folder")
    return Naming(label, count, folder=output) if several else Naming(label, count, file=output)


def plan(inputs: Sequence[Path], names: Naming, *, recursive: bool = False, overwrite: bool = False) -> list[Job]:
    """One job per picture, in the order given; a refused one carries its error.

    Pictures that were only found in a folder are left out if they are where this run writes: results of an earlier one.
    """
    found: dict[str, Found] = {}
    for path in inputs:
        for entry in _pictures(path, recursive):
            found.setdefault(os.path.abspath(entry.path), entry)
    outputs = _outputs(found.values(), names)
    results = {out.resolve() for files in outputs.values() for out in files}
    entries = [entry for entry in found.values() if entry.named or entry.path.resolve() not in results]
    taken = {entry.path.resolve(): f"is the input {entry.path}" for entry in entries}
    return [claim(entry, outputs[entry], taken, overwrite) for entry in entries]


def _outputs(entries: Iterable["Found"], names: Naming) -> dict["Found", tuple[Path, ...]]:
    """The files for each input; where a.jpg and a.png would make the same, the suffixes stay in the names."""
    outputs = {entry: names.outputs(entry) for entry in entries}
    sources: dict[Path, set[str]] = {}
    for entry, files in outputs.items():
        sources.setdefault(files[0], set()).add(entry.path.name)
    return {entry: names.outputs(entry, suffix=len(sources[files[0]]) > 1) for entry, files in outputs.items()}


@dataclass(frozen=True)
class Found:
    """A file to enlarge, and where it lies in the folder that the user named."""

    path: Path
    below: Path = Path()
    named: bool = False  # by the user, not found in a folder
    error: str | None = None


def _pictures(path: Path, recursive: bool) -> Iterator[Found]:
    if not os.path.isdir(path):  # unlike Path.is_dir it raises for no name
        yield Found(path, named=True, error=None if os.path.exists(path) else "no such file or folder")
        return
    errors: list[OSError] = []
    found: list[Found] = []
    for folder, folders, files in os.walk(path, onerror=errors.append):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        pictures = [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        below = Path(folder).relative_to(path)
        found += [Found(picture, below) for picture in pictures if picture.suffix.lower() in PICTURES]
    yield from found
    for error in errors:
        yield Found(Path(error.filename), error=f"cannot be read ({error.strerror}); check its permissions")
    if not found and not errors:
        advice = "" if recursive else "; --recursive searches the folders in it"
        yield Found(path, named=True, error=f"no pictures in this folder{advice}")


def claim(entry: Found, outputs: tuple[Path, ...], taken: dict[Path, str], overwrite: bool) -> Job:
    """Check an entry and claim its outputs in `taken`."""
    if entry.error is not None:
        return Job(entry.path, error=entry.error)
    try:
        outputs[0].parent.mkdir(parents=True, exist_ok=True)
        for out in outputs:
            if (reason := taken.get(out.resolve())) is not None:
                raise InputError(f"{out} {reason}; choose another --output")
            if out.exists() and not overwrite:
                raise InputError(f"{out} exists already; choose another --output, or replace it with --overwrite")
            check_output(out, overwrite=overwrite)
    except InputError as error:
        return Job(entry.path, error=str(error))
    except OSError as error:
        return Job(entry.path, error=f"{outputs[0].parent}: cannot be made ({error.strerror}); choose another --output")
    taken.update((out.resolve(), f"is already the result of {entry.path}") for out in outputs)
    return Job(entry.path, outputs)
