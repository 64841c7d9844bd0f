"""A verb on a Ray cluster: what can be refused is refused first; then the run, its report and its manifest."""

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import typer

from enlarger import errors
from enlarger.cli.cluster_listing import PictureListing
from enlarger.cli.cluster_worker import AGAIN, ClusterRun, PictureWorker
from enlarger.cli.files import OutputNaming
from enlarger.cli.image_jobs import FileOptions
from enlarger.cli.report import Outcome, Report
from enlarger.cli.resume import run_name
from enlarger.cluster.connect import ClusterOptions, connected
from enlarger.cluster.manifest import NAME, PARTS, Manifest
from enlarger.cluster.pipeline import run_batch
from enlarger.cluster.storage import Storage, is_read_only, locate
from enlarger.errors import EnlargerError, InputError
from enlarger.image.atomic_write import remove_stale_parts
from enlarger.image.decode import one_line
from enlarger.image.encode import SUFFIXES, check_background
from enlarger.strict_json import Json


class Listing(Protocol):
    """What there is to do."""

    def __call__(self, done: Mapping[str, str]) -> Iterable[Json]: ...
    def count(self) -> int: ...


@dataclass(frozen=True)
class Destination:
    """Where results and the manifest go."""

    storage: Storage
    folder: Path

    def check(self) -> None:
        """Raise InputError where nothing can be written."""
        if is_read_only(self.storage):
            raise InputError(f"--output {self.storage.show(self.folder)}: nothing can be written there; choose another")
        probe = self.folder / PARTS / f"probe-{os.getpid()}"
        try:
            self.storage.put(probe, b"\n")
            self.storage.remove(probe)
        except OSError as error:
            shown = self.storage.show(self.folder)
            raise InputError(f"--output {shown}: cannot be written ({one_line(error)}); choose another") from error


def destination(output: str | None) -> Destination:
    """The folder that `--output` names. Raises BadParameter for none, and for a file."""
    if output is None:
        raise typer.BadParameter("--ray needs --output FOLDER, which keeps the manifest of the run too")
    storage, folder = locate(output)
    if folder.suffix.lower() in SUFFIXES and not output.endswith("/"):
        raise typer.BadParameter(f"--output {output} names one file, but --ray needs a folder; give one")
    return Destination(storage, folder)


def process_on_cluster(
    files: FileOptions,
    request: Any,
    load: Callable[[], Any],
    options: tuple[object, ...],
    **doing: Any,
) -> None:
    """Run a verb over pictures; `options` are all that makes runs differ beside the request.

    `doing` may name another `process`, `check` or `settings` of a `ClusterRun`.
    """
    assert files.cluster is not None
    target = destination(files.output)
    try:
        check_background(files.background)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    inputs = [str(location) for location in files.inputs]
    beside = () if files.companions is None else (files.companions.location,)
    for location in (*inputs, *beside):
        _check_input(location, target, files.recursive)
    naming = OutputNaming(files.label, request.count, target.folder, kind="png" if files.kind is None else files.kind)
    listing = PictureListing(inputs, naming, target.storage, files.recursive, files.again)
    run = ClusterRun(request, load, files, run_name(request, *options), options, target.storage)
    run_on_cluster(replace(run, **doing), listing, target, files.cluster)


def _check_input(location: str, target: Destination, recursive: bool) -> None:
    """Raise InputError for what is not there, and for a folder in which results would be listed while they are made."""
    storage, path = locate(location)
    try:
        is_there = storage.states([path])[path].exists or storage.is_folder(path)
    except OSError as error:
        raise InputError(
            f"{storage.show(path)}: cannot be read ({one_line(error)}); check the address and its keys"
        ) from error
    if not is_there:
        raise InputError(f"{storage.show(path)}: no such file or folder")
    if storage.is_local != target.storage.is_local or not storage.is_folder(path):
        return
    source, folder = (path.resolve(), target.folder.resolve()) if storage.is_local else (path, target.folder)
    if folder == source or (recursive and folder.is_relative_to(source)):
        shown = target.storage.show(target.folder)
        raise InputError(
            f"--output {shown} lies in {storage.show(path)}, listed while results are made; choose another"
        )


def run_on_cluster(run: ClusterRun, listing: Listing, target: Destination, options: ClusterOptions) -> None:
    """Do all that is listed. Ends with status 1 if something failed, 130 after Ctrl-C; the next run goes on."""
    files, counts, folders = run.files, Counter[str](), set[Path]()
    if not options.address.startswith("ray://"):  # whose nodes alone have the models
        files.loading.paths()  # raises for what is not there
    target.check()
    manifest = Manifest(target.storage, target.folder)
    manifest.compact()
    done = {} if files.overwrite else manifest.done(run.name)
    with Report(2, json_lines=files.json_lines, quiet=files.quiet) as report:
        report.start_stage(f"joining the cluster {options.address}")
        try:
            with connected(options) as ray, _written(manifest):
                progress = Progress(report, listing)
                rows = run_batch(ray, (listing, done), partial(PictureWorker, run), _stage(run), options)
                for row in _typed(ray, rows):
                    counts[progress.finish(row)] += 1
                    folders.update(Path(out).parent for out in row.get("outputs", ()))
                    if "passed" not in row and not row.get("is_known"):
                        manifest.add(row)
        except KeyboardInterrupt:
            report.message(f"interrupted: {counts['done']} pictures done; the same command goes on")
            raise typer.Exit(130) from None
        finally:
            _clear(target, folders)
        _summarize(report, counts, target)
    if counts["failed"]:
        raise typer.Exit(1)


@contextmanager
def _written(manifest: Manifest) -> Generator[None]:
    """Whatever ends the block, what is known is written first."""
    try:
        yield
    finally:
        manifest.compact()


def _typed(ray: Any, rows: Iterator[Json]) -> Iterator[Json]:
    """The rows; what ends the run becomes an error of ours, with the type that it had in the worker."""
    try:
        for row in rows:
            if "fatal" in row:
                kind, text = row["fatal"]
                found = getattr(errors, kind, EnlargerError)
                raise found(text) if issubclass(found, EnlargerError) else EnlargerError(text)
            yield row
    except ray.exceptions.RayError as error:
        reason = one_line(str(error).strip().splitlines()[-1])
        raise EnlargerError(f"the cluster failed ({reason}); the same command goes on where it stopped") from error


def _stage(run: ClusterRun) -> str:
    return type(run.request).__name__.removesuffix("Request")


def _clear(target: Destination, folders: set[Path]) -> None:
    """Remove what killed workers of this machine have left of files that they were writing."""
    if target.storage.is_local:
        for folder in (target.folder, *folders):
            remove_stale_parts(folder)


def _summarize(report: Report, counts: Counter[str], target: Destination) -> None:
    said = [
        f"{counts[name]} {name}" for name in ("done", "done before", "skipped", "failed", "passed over") if counts[name]
    ]
    report.message(f"{', '.join(said) or 'nothing to do'}; {target.storage.show(target.folder / NAME)} has each")


class Progress:
    """The bar of a run whose pictures are counted while it goes on."""

    def __init__(self, report: Report, listing: Listing) -> None:
        self.report, self.total, self.done = report, None, 0
        self.started, self.known = 0.0, tuple(item.name for item in fields(Outcome))
        report.expect(None)
        Thread(target=self._count, args=(listing,), daemon=True).start()

    def _count(self, listing: Listing) -> None:
        with suppress(EnlargerError, OSError):  # it is told where it is met by the run; here the total stays unknown
            self.total = listing.count()

    def finish(self, row: Json) -> str:
        """Report a row; by what it is counted."""
        if "passed" in row:
            self.report.message(f"{row['input']}: passed over, {row['passed']}")
            return "passed over"
        said = {name: value for name, value in row.items() if name in self.known}
        said |= {name: tuple(said[name]) for name in ("outputs", "notes") if name in said}
        self.report.finish_file(Outcome(**said))
        is_new = row["status"] == "done" and row.get("skipped") != AGAIN
        if is_new:
            self.done += 1
            self.started = self.started or time.monotonic() - float(row.get("seconds", 0.0))
            self.report.expect(self.total, self.done / max(time.monotonic() - self.started, 1e-9))
        return row["status"] if is_new or row["status"] != "done" else "done before"
