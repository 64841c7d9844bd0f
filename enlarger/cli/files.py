"""Which files a run writes for those that it reads, settled and checked before anything is computed."""

import errno
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from enlarger.cli.earlier_results import without_earlier_results
from enlarger.cli.inputs import InputFile, PassedOver, find_inputs, too_long
from enlarger.cli.options import ALL_FRAMES
from enlarger.cli.resume import Fingerprint, carries
from enlarger.errors import InputError
from enlarger.image.atomic_write import remove_stale_parts
from enlarger.image.encode import FRAME_SUFFIXES, SUFFIXES, check_output


@dataclass(frozen=True)
class Job:
    """One picture, the files to write for it, and the reason why not if it cannot be done."""

    input: Path
    outputs: tuple[Path, ...] = ()
    error: str | None = None
    skipped: str | None = None  # why nothing is to be done
    note: str | None = None
    overwrite: bool = False  # replace the outputs that exist


@dataclass(frozen=True)
class ExistingFiles:
    """What becomes of a job whose files exist: replaced, left alone, or done if they are results of this very run."""

    overwrite: bool = False
    skip: bool = False
    fingerprint: Fingerprint | None = None
    again: bool = False  # results of earlier runs that lie in a folder are pictures as all others

    def settle(self, job: Job) -> Job:
        """The job, to be done or not. Raises InputError for files that nobody said what to do with."""
        if self.overwrite:
            return replace(job, overwrite=True)
        existing = [out for out in job.outputs if os.path.lexists(out)]
        if not existing:
            return job
        made = [out for out in existing if self.fingerprint and self._made_by_this_run(job, out)]
        if len(made) == len(job.outputs):
            return replace(job, skipped="was made by the same command before")
        if self.skip:
            return replace(job, skipped=f"{existing[0]} exists already")
        if made != existing:
            out = next(out for out in existing if out not in made)
            raise InputError(f"{out} exists already; choose another --output, or replace it with --overwrite")
        return replace(job, overwrite=True)

    def _made_by_this_run(self, job: Job, out: Path) -> bool:
        return self.fingerprint is not None and carries(out, self.fingerprint(job.input, job.outputs.index(out)))


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, and what of the folders it leaves alone."""

    jobs: Sequence[Job]
    passed_over: Sequence[PassedOver] = ()


@dataclass(frozen=True)
class OutputNaming:
    """Where results go: beside the input, into `folder`, or to `file`; `count` of them, named `NAME-LABEL[-K].png`."""

    label: str
    count: int = 1
    folder: Path | None = None
    file: Path | None = None
    kind: str = "png"  # of the files; "same" as the input's

    def suffix_for(self, path: Path) -> str:
        """What the result of an input ends in; PNG where its own kind is not written."""
        if self.kind == ALL_FRAMES:
            return path.suffix if path.suffix.lower() in FRAME_SUFFIXES else ".png"
        if self.kind != "same":
            return f".{self.kind}"
        return path.suffix if path.suffix.lower() in SUFFIXES else ".png"

    def outputs(self, input_file: InputFile, keep_suffix: bool = False) -> tuple[Path, ...]:
        """The files to make of an input; NAME is that of the input, without its suffix unless `keep_suffix` is true."""
        folder = input_file.path.parent if self.folder is None else self.folder / input_file.subfolder
        name = input_file.path.name if keep_suffix else input_file.path.stem
        first = folder / f"{name}-{self.label}{self.suffix_for(input_file.path)}" if self.file is None else self.file
        if self.count == 1:
            return (first,)
        return tuple(first.with_name(f"{first.stem}-{k}{first.suffix}") for k in range(1, self.count + 1))


def is_folder_name(output: str) -> bool:
    """Whether `--output` says that it is a folder: it is one, ends like one, or has no suffix."""
    return os.path.isdir(output) or output.endswith((os.sep, "/")) or not Path(output).suffix


def output_naming(
    inputs: Sequence[Path], output_option: str | None, label: str, count: int, kind: str | None = None
) -> OutputNaming:
    """What `--output` and `--format` mean: the name of a file if there is one input file, else a folder.

    Raises InputError if it names one file for several inputs, or another kind of file than `--format`.
    """
    naming = OutputNaming(label, count, kind="png" if kind is None else kind)
    if output_option is None:
        return naming
    output = Path(output_option)
    has_several_inputs = len(inputs) > 1 or os.path.isdir(inputs[0])
    if is_folder_name(output_option):
        return replace(naming, folder=output)
    if has_several_inputs and output.suffix.lower() in SUFFIXES:
        raise InputError(f"--output {output} names one file, but there are several inputs; give a folder")
    if has_several_inputs:
        return replace(naming, folder=output)
    expected = SUFFIXES.get(naming.suffix_for(inputs[0]).lower())
    if kind not in (None, ALL_FRAMES) and SUFFIXES.get(output.suffix.lower(), expected) != expected:
        raise InputError(f"--output {output} and --format {kind} name different kinds of file; give one of them")
    return replace(naming, file=output)


def plan_jobs(
    inputs: Sequence[Path], naming: OutputNaming, existing: ExistingFiles, *, recursive: bool = False
) -> Plan:
    """One job per picture, in the order given; a refused one carries its error.

    Pictures that were only found in a folder are left out if they are where this run writes: results of an earlier one.
    """
    found, passed_over = find_inputs(inputs, recursive)
    if not existing.again:
        found, passed_over = without_earlier_results(found, passed_over)
    outputs = outputs_of(found, naming)
    results = {out.resolve() for files in outputs.values() for out in files}
    input_files = [entry for entry in found if entry.is_named_by_user or entry.path.resolve() not in results]
    reserved = {entry.path.resolve(): f"is the input {entry.path}" for entry in input_files}
    suffixes = FRAME_SUFFIXES if naming.kind == ALL_FRAMES else SUFFIXES
    jobs = [plan_job(entry, outputs[entry], reserved, existing, suffixes) for entry in input_files]
    for folder in {out.parent for job in jobs for out in job.outputs}:
        remove_stale_parts(folder)
    return Plan([with_format_note(job, naming.kind) for job in jobs], passed_over)


def with_format_note(job: Job, kind: str | None) -> Job:
    """The job, with a note if its results are of another kind than was asked for."""
    suffix = job.input.suffix
    if kind != "same" or job.error is not None or suffix.lower() in SUFFIXES:
        return job
    return replace(job, note=f"{suffix or 'a file without a suffix'} is no kind that is written: PNG instead")


def outputs_of(input_files: Iterable[InputFile], naming: OutputNaming) -> dict[InputFile, tuple[Path, ...]]:
    """The files for each input; where a.jpg and a.png would make the same, the suffixes stay in the names, and where
    one/a.jpg and two/a.jpg would, the folders.

    Names that a disk may take for one, such as A and a, count as the same.
    """
    entries = _in_folders(list(input_files), naming)
    outputs = {entry: naming.outputs(placed) for entry, placed in entries.items()}
    names_by_output: dict[str, set[str]] = {}
    for entry, files in outputs.items():
        names_by_output.setdefault(disk_name(files[0]), set()).add(entry.path.name)
    return {
        entry: naming.outputs(placed, keep_suffix=len(names_by_output[disk_name(outputs[entry][0])]) > 1)
        for entry, placed in entries.items()
    }


def _in_folders(entries: Sequence[InputFile], naming: OutputNaming) -> dict[InputFile, InputFile]:
    """The inputs, each with its place below the results' folder: below the folder that all of them share, where several
    folders have pictures of one name."""
    places = [(disk_name(entry.subfolder / entry.path.name), os.path.abspath(entry.path)) for entry in entries]
    if naming.folder is None or len(set(places)) == len({name for name, _ in places}):
        return {entry: entry for entry in entries}
    common = os.path.commonpath([os.path.dirname(path) for _, path in places])
    folders = (Path(os.path.relpath(os.path.dirname(path), common)) for _, path in places)
    return {entry: replace(entry, subfolder=folder) for entry, folder in zip(entries, folders, strict=True)}


def disk_name(path: Path) -> str:
    """A path as disks see it that take capitals for small letters, and accents in any form."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def plan_job(
    input_file: InputFile,
    outputs: tuple[Path, ...],
    reserved: dict[Path, str],
    existing: ExistingFiles,
    suffixes: Mapping[str, str] = SUFFIXES,
) -> Job:
    """Check an input and reserve its outputs in `reserved`."""
    if input_file.error is not None:
        return Job(input_file.path, error=input_file.error)
    try:
        outputs[0].parent.mkdir(parents=True, exist_ok=True)
        for out in outputs:
            with suppress(FileNotFoundError):
                out.lstat()  # raises for a name that the disk does not take
            if (reason := reserved.get(out.resolve())) is not None:
                raise InputError(f"{out} {reason}; choose another --output")
            if out.suffix.lower() not in suffixes:
                raise InputError(
                    f"{out}: found suffix {out.suffix!r}, expected one of {', '.join(suffixes)}; choose one of these, "
                    "or end the name with / if it is a folder"
                )
            check_output(out, overwrite=True, suffixes=suffixes)
        job = existing.settle(Job(input_file.path, outputs))
    except InputError as error:
        return Job(input_file.path, error=str(error))
    except OSError as error:
        reason = f"{outputs[0].parent}: cannot be made ({error.strerror}); choose another --output"
        if error.errno == errno.ENAMETOOLONG:
            reason = f"--output: {too_long(outputs[0])}"
        return Job(input_file.path, error=reason)
    reserved.update((out.resolve(), f"is already the result of {input_file.path}") for out in outputs)
    return job
