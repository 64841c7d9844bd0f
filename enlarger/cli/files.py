"""Which files a run reads and which it writes, settled and checked before anything is computed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError
from enlarger.images import SUFFIXES, check_output

PICTURES = frozenset({*SUFFIXES, ".gif"})  # what is taken from a folder; a file named by the user may be anything


@dataclass(frozen=True)
class Job:
    """One picture, the files to write for it, and the reason why not if it cannot be done."""

    input: Path
    outputs: tuple[Path, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Naming:
    """Where results go: beside the input, into `folder`, or to `file`; `count` of them, named `name-LABEL[-K].png`."""

    label: str
    count: int = 1
    folder: Path | None = None
    file: Path | None = None

    def outputs(self, path: Path, below: Path) -> tuple[Path, ...]:
        """The files for the input `path`, which was found in the folder `below` of a folder given by the user."""
        folder = path.parent if self.folder is None else self.folder / below
        first = folder / f"{path.stem}-{self.label}.png" if self.file is None else self.file
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
    found = list(dict.fromkeys(entry for path in inputs for entry in _pictures(path, recursive)))
    results = {out.resolve() for entry in found for out in names.outputs(entry.path, entry.below)}
    found = [entry for entry in found if entry.named or entry.path.resolve() not in results]
    taken = {entry.path.resolve(): f"is the input {entry.path}" for entry in found}
    return [_job(entry, names, taken, overwrite) for entry in found]


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


def _job(entry: Found, names: Naming, taken: dict[Path, str], overwrite: bool) -> Job:
    """Check an entry and claim its outputs in `taken`."""
    if entry.error is not None:
        return Job(entry.path, error=entry.error)
    outputs = names.outputs(entry.path, entry.below)
    try:
        if names.folder is not None:
            outputs[0].parent.mkdir(parents=True, exist_ok=True)
        for out in outputs:
            if (reason := taken.get(out.resolve())) is not None:
                raise InputError(f"{out} {reason}; choose another --output")
            check_output(out, overwrite=overwrite)
    except InputError as error:
        return Job(entry.path, error=str(error))
    except OSError as error:
        return Job(entry.path, error=f"{outputs[0].parent}: cannot be made ({error.strerror}); choose another --output")
    taken.update((out.resolve(), f"is already the result of {entry.path}") for out in outputs)
    return Job(entry.path, outputs)
