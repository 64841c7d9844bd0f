"""Which files a run reads and which it writes, settled and checked before anything is computed."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError
from enlarger.image.encode import SUFFIXES, check_output

IMAGE_SUFFIXES = frozenset({*SUFFIXES, ".gif"})  # what is taken from a folder; a file named by the user may be anything


@dataclass(frozen=True)
class Job:
    """One picture, the files to write for it, and the reason why not if it cannot be done."""

    input: Path
    outputs: tuple[Path, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class OutputNaming:
    """Where results go: beside the input, into `folder`, or to `file`; `count` of them, named `NAME-LABEL[-K].png`."""

    label: str
    count: int = 1
    folder: Path | None = None
    file: Path | None = None

    def outputs(self, input_file: "InputFile", keep_suffix: bool = False) -> tuple[Path, ...]:
        """The files to make of an input; NAME is that of the input, without its suffix unless `keep_suffix` is true."""
        folder = input_file.path.parent if self.folder is None else self.folder / input_file.subfolder
        name = input_file.path.name if keep_suffix else input_file.path.stem
        first = folder / f"{name}-{self.label}.png" if self.file is None else self.file
        if self.count == 1:
            return (first,)
        return tuple(first.with_name(f"{first.stem}-{k}{first.suffix}") for k in range(1, self.count + 1))


def output_naming(inputs: Sequence[Path], output: Path | None, label: str, count: int) -> OutputNaming:
    """What `--output` means: the name of a file if there is one input file, else a folder.

    Raises InputError if it names one file for several inputs.
    """
    if output is None:
        return OutputNaming(label, count)
    has_several_inputs = len(inputs) > 1 or os.path.isdir(inputs[0])
    if os.path.isdir(output) or not output.suffix:
        return OutputNaming(label, count, folder=output)
    if has_several_inputs and output.suffix.lower() in SUFFIXES:
        raise InputError(f"--output {output} names one file, but there are several inputs; give a folder")
    return OutputNaming(label, count, folder=output) if has_several_inputs else OutputNaming(label, count, file=output)


def plan_jobs(
    inputs: Sequence[Path], naming: OutputNaming, *, recursive: bool = False, overwrite: bool = False
) -> list[Job]:
    """One job per picture, in the order given; a refused one carries its error.

    Pictures that were only found in a folder are left out if they are where this run writes: results of an earlier one.
    """
    inputs_by_path: dict[str, InputFile] = {}
    for path in inputs:
        for input_file in _find_images(path, recursive):
            inputs_by_path.setdefault(os.path.abspath(input_file.path), input_file)
    outputs = _outputs(inputs_by_path.values(), naming)
    results = {out.resolve() for files in outputs.values() for out in files}
    input_files = [
        entry for entry in inputs_by_path.values() if entry.is_named_by_user or entry.path.resolve() not in results
    ]
    reserved = {entry.path.resolve(): f"is the input {entry.path}" for entry in input_files}
    return [plan_job(entry, outputs[entry], reserved, overwrite) for entry in input_files]


def _outputs(input_files: Iterable["InputFile"], naming: OutputNaming) -> dict["InputFile", tuple[Path, ...]]:
    """The files for each input; where a.jpg and a.png would make the same, the suffixes stay in the names."""
    outputs = {input_file: naming.outputs(input_file) for input_file in input_files}
    names_by_output: dict[Path, set[str]] = {}
    for entry, files in outputs.items():
        names_by_output.setdefault(files[0], set()).add(entry.path.name)
    return {
        entry: naming.outputs(entry, keep_suffix=len(names_by_output[files[0]]) > 1) for entry, files in outputs.items()
    }


@dataclass(frozen=True)
class InputFile:
    """A file to enlarge, and where it lies in the folder that the user named."""

    path: Path
    subfolder: Path = Path()
    is_named_by_user: bool = False  # by the user, not found in a folder
    error: str | None = None


def _find_images(path: Path, recursive: bool) -> Iterator[InputFile]:
    if not os.path.isdir(path):  # unlike Path.is_dir it raises for no name
        yield InputFile(path, is_named_by_user=True, error=None if os.path.exists(path) else "no such file or folder")
        return
    errors: list[OSError] = []
    input_files: list[InputFile] = []
    for folder, folders, files in os.walk(path, onerror=errors.append):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        pictures = [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        subfolder = Path(folder).relative_to(path)
        input_files += [
            InputFile(picture, subfolder) for picture in pictures if picture.suffix.lower() in IMAGE_SUFFIXES
        ]
    yield from input_files
    for error in errors:
        yield InputFile(Path(error.filename), error=f"cannot be read ({error.strerror}); check its permissions")
    if not input_files and not errors:
        advice = "" if recursive else "; --recursive searches the folders in it"
        yield InputFile(path, is_named_by_user=True, error=f"no pictures in this folder{advice}")


def plan_job(input_file: InputFile, outputs: tuple[Path, ...], reserved: dict[Path, str], overwrite: bool) -> Job:
    """Check an input and reserve its outputs in `reserved`."""
    if input_file.error is not None:
        return Job(input_file.path, error=input_file.error)
    try:
        outputs[0].parent.mkdir(parents=True, exist_ok=True)
        for out in outputs:
            if (reason := reserved.get(out.resolve())) is not None:
                raise InputError(f"{out} {reason}; choose another --output")
            if out.exists() and not overwrite:
                raise InputError(f"{out} exists already; choose another --output, or replace it with --overwrite")
            check_output(out, overwrite=overwrite)
    except InputError as error:
        return Job(input_file.path, error=str(error))
    except OSError as error:
        return Job(
            input_file.path, error=f"{outputs[0].parent}: cannot be made ({error.strerror}); choose another --output"
        )
    reserved.update((out.resolve(), f"is already the result of {input_file.path}") for out in outputs)
    return Job(input_file.path, outputs)
