"""What a worker of a cluster does with a picture: it is brought here, made by the same functions, and taken there."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from enlarger.cli.files import ExistingFiles, Job, plan_job, with_format_note
from enlarger.cli.image_jobs import FileOptions, check_result, process_image, run_safely
from enlarger.cli.inputs import InputFile
from enlarger.cli.loading import check_options
from enlarger.cli.report import Outcome, Report
from enlarger.cli.resume import fingerprint_of_run
from enlarger.cluster.storage import FileState, Storage, locate
from enlarger.errors import EnlargerError, InputError
from enlarger.image.atomic_write import remove_stale_parts
from enlarger.image.decode import one_line
from enlarger.image.encode import FRAME_SUFFIXES, SUFFIXES
from enlarger.runtime.importing import garbage_ignored
from enlarger.strict_json import Json

AGAIN = "was made by the same command before"
GIVEN_UP = "its workers died at it again and again (memory, or a fault of a reader); look at it alone, without --ray"
Process = Callable[..., Outcome]  # of task, what makes a request of a job, request, report, files and job
Check = Callable[[Job, Any, FileOptions], Job]


@dataclass(frozen=True)
class ClusterRun:
    """All that a worker has to know of a run."""

    request: Any
    load: Callable[[], Any]
    files: FileOptions
    name: str  # by which runs with the same options are known
    settings: tuple[object, ...] | None  # of the fingerprint that results carry; None where they carry none
    output: Storage
    process: Process = process_image
    check: Check = check_result


class PictureWorker:
    """Does jobs, with a model that is loaded when the first one needs it."""

    def __init__(self, run: ClusterRun) -> None:
        self.about = run
        self.report = Report(1, quiet=True)
        self.prepared = set[Path]()

    def run(self, jobs: Sequence[Json], may_start: Callable[[str], bool]) -> list[Json]:
        """A row of the manifest for each job, or what stops the run: a model that cannot be loaded."""
        states = self._states(jobs)
        try:
            return [self._run(job, states, may_start) for job in jobs]
        except _Fatal as error:
            return [{"fatal": [type(error.cause).__name__, str(error.cause)]}]

    @cached_property
    def task(self) -> Any:
        """The model; a failure ends the run, as every other picture would meet it too."""
        try:
            with garbage_ignored():
                task = self.about.load()
            check_options(task, self.about.request)
            return task
        except EnlargerError as error:
            raise _Fatal(error) from error

    def _states(self, jobs: Sequence[Json]) -> "States":
        """What is known of the inputs and outputs of jobs, asked for together."""
        found: States = {}
        inputs: dict[str, list[Path]] = {}
        for job in jobs:
            if "path" in job:
                inputs.setdefault(job["location"], []).append(Path(job["path"]))
        for location, paths in inputs.items():
            states = locate(location)[0].states(paths)
            found |= {f"{location} {path}": state for path, state in states.items()}
        outputs = self.about.output.states(Path(out) for job in jobs for out in job.get("outputs", ()))
        return found | {str(path): state for path, state in outputs.items()}

    def _run(self, job: Json, states: "States", may_start: Callable[[str], bool]) -> Json:
        if "passed" in job:
            return job
        row = {"key": job["key"], "input": job["input"], "run": self.about.name}
        if "error" in job:
            return row | {"status": "failed", "error": job["error"]}
        state = states.get(f"{job.get('location')} {job.get('path')}", FileState(True))
        row |= {"version": job.get("version", state.version)}
        if job.get("done") == row["version"] and all(states[out].exists for out in job["outputs"]):
            return row | {"status": "done", "skipped": AGAIN, "is_known": True}
        if not may_start(job["key"]):
            return row | {"status": "failed", "error": GIVEN_UP}
        existing = [out for out in job["outputs"] if states[out].exists]
        with tempfile.TemporaryDirectory(prefix="enlarger-") as folder:
            outcome = Staging(Path(folder), self).run(job, existing)
        return row | _described(outcome)

    def prepare(self, folder: Path) -> None:
        """Clear a local folder, once, of what killed workers left there."""
        if folder not in self.prepared:
            self.prepared.add(folder)
            remove_stale_parts(folder)


States = dict[str, FileState]


class _Fatal(Exception):
    def __init__(self, cause: EnlargerError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class Staging:
    """One job, with the files of other machines in a folder of this one while it is done."""

    folder: Path
    worker: PictureWorker

    def run(self, job: Json, existing: Sequence[str]) -> Outcome:
        """What became of it. Errors name the files where they are, not where they were brought to."""
        try:
            outcome = self._run(job, existing)
        except InputError as error:
            outcome = Outcome(job["input"], error=str(error))
        except OSError as error:
            outcome = Outcome(job["input"], error=f"cannot be read or written ({one_line(error)}); try again")
        names = {
            str(self.folder / "out" / Path(out).name): self._about.output.show(Path(out)) for out in job["outputs"]
        }
        names |= {str(self.folder / "in" / Path(job["input"]).name): job["input"]}
        return _renamed(outcome, job, names)

    @property
    def _about(self) -> ClusterRun:
        return self.worker.about

    def _run(self, job: Json, existing: Sequence[str]) -> Outcome:
        about = self._about
        source = self._bring(job["location"], Path(job["path"]), "in") if "path" in job else Path(job["input"])
        outputs = self._places(job["outputs"], existing)
        request, beside = self._request(job, source)
        fingerprint = None
        if about.settings is not None:
            fingerprint = fingerprint_of_run(about.request, *about.settings, beside=lambda _: beside)
        files = replace(about.files, fingerprint=fingerprint)
        planned = self._plan(source, outputs, files)
        if planned.error is None and planned.skipped is None:
            planned = about.check(planned, request, files)
        if planned.error is None and planned.skipped is None:
            _ = self.worker.task  # which may end the run, and not only this picture
        outcome = run_safely(planned, partial(self._process, request, files))
        if outcome.error is None and outcome.skipped is None:
            outcome = self._publish(outcome, outputs, job["outputs"], existing)
        return outcome

    def _process(self, request: Any, files: FileOptions, job: Job) -> Outcome:
        def to_request(_: Any, job: Job) -> Any:
            return replace(request, image=job.input) if hasattr(request, "image") else request

        return self._about.process(self.worker.task, to_request, request, self.worker.report, files, job)

    def _plan(self, source: Path, outputs: Sequence[Path], files: FileOptions) -> Job:
        existing = ExistingFiles(files.overwrite, files.skip_existing, files.fingerprint)
        suffixes = FRAME_SUFFIXES if files.all_frames else SUFFIXES
        reserved = {source.resolve(): f"is the input {source}"}
        entry = InputFile(source, is_named_by_user=True)
        job = plan_job(entry, tuple(outputs), reserved, existing, suffixes)
        return with_format_note(job, files.kind)

    def _request(self, job: Json, source: Path) -> tuple[Any, Sequence[Path]]:
        """The request of a job, and the files that it reads beside its input."""
        request, companions = replace(self._about.request, **job.get("request", {})), self._about.files.companions
        if companions is None:
            return request, ()
        _, path = companions.find(source)
        file = self._bring(companions.location, path, "beside")
        return replace(request, **{companions.field: file}), (file,)

    def _bring(self, location: str, path: Path, role: str) -> Path:
        """A file that this machine can open, of the same name."""
        storage, _ = locate(location)
        if storage.is_local:
            return path
        file = self.folder / role / path.name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(storage.read(path))
        return file

    @property
    def _is_staged(self) -> bool:
        """Whether results are made in the folder first: where they go elsewhere, or are to be compared."""
        return not self._about.output.is_local or self._about.settings is None

    def _places(self, outputs: Sequence[str], existing: Sequence[str]) -> list[Path]:
        """Where results are made; what exists there is brought where that decides what is to be done."""
        if not self._is_staged:
            self.worker.prepare(Path(outputs[0]).parent)
            return [Path(out) for out in outputs]
        places = [self.folder / "out" / Path(out).name for out in outputs]
        places[0].parent.mkdir()
        if not self._about.files.overwrite and self._about.settings is not None:
            for out, place in zip(outputs, places, strict=True):
                if out in existing:
                    place.write_bytes(self._about.output.read(Path(out)))
        return places

    def _publish(
        self, outcome: Outcome, made: Sequence[Path], outputs: Sequence[str], existing: Sequence[str]
    ) -> Outcome:
        """Take results to where they belong. One that is there already must be the same, or is not replaced."""
        if not self._is_staged:
            return outcome
        storage, is_unnamed = self._about.output, self._about.settings is None and not self._about.files.overwrite
        for place, out in zip(made, outputs, strict=True):
            path, data = Path(out), place.read_bytes()
            if is_unnamed and out in existing:
                if storage.read(path) != data:
                    raise InputError(
                        f"{storage.show(path)} exists already; choose another --output, or replace it with --overwrite"
                    )
                continue
            storage.put(path, data)
        return outcome


def _described(outcome: Outcome) -> Json:
    """An outcome as a row of the manifest has it."""
    status = "done"
    if outcome.error is not None:
        status = "failed"
    elif outcome.skipped is not None and outcome.skipped != AGAIN:
        status = "skipped"
    said: Json = json.loads(outcome.to_json_line())
    return said | {"status": status}


def _renamed(outcome: Outcome, job: Json, names: Mapping[str, str]) -> Outcome:
    """An outcome that speaks of files by the names that a person knows."""

    def rename(text: str) -> str:
        for place, name in names.items():
            text = text.replace(place, name)
        return text

    return replace(
        outcome,
        input=job["input"],
        outputs=tuple(rename(str(out)) for out in outcome.outputs),
        error=None if outcome.error is None else rename(outcome.error),
        skipped=None if outcome.skipped is None else rename(outcome.skipped),
        notes=tuple(_each(rename, outcome.notes)),
    )


def _each(rename: Callable[[str], str], texts: Iterable[str]) -> list[str]:
    return [rename(text) for text in texts]
