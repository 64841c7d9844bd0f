"""The files of jobs: what a worker left, what is old or too much, and what belongs to nobody."""

import logging
import shutil
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from enlarger.errors import InputError
from enlarger.service.jobs.job import RESULT_FILE, JobResult, is_job_id, job_folder

ORPHAN_SECONDS = 60.0  # a folder without a job may be that of a request that is just being received
RESULT: TypeAdapter[JobResult] = TypeAdapter(JobResult)
log = logging.getLogger("enlarger.service.jobs")


def make_folders(data: Path) -> None:
    """Make the folders of the service. Raises InputError where that cannot be."""
    try:
        for folder in (data, data / "jobs", data / "spool"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{data}: cannot hold the service's files ({error}); give another data folder") from error


def empty_spool(data: Path) -> None:
    """Delete uploads that an earlier process was receiving."""
    for path in _list_folder(data / "spool"):
        _remove(path)


def remove_job_folder(data: Path, id: str) -> None:
    """Delete a job's files; what cannot be deleted is reported and left for the next start."""
    _remove(job_folder(data, id))


def remove_orphan_folders(data: Path, known_ids: Container[str]) -> None:
    """Delete the folders of jobs that are not known."""
    before = time.time() - ORPHAN_SECONDS
    for path in (data / "jobs").iterdir():
        if path.name not in known_ids and path.stat().st_mtime < before:
            _remove(path)


def read_result(data: Path, id: str) -> JobResult | None:
    """What the worker wrote of a job that it has completed; None if it has not."""
    try:
        return RESULT.validate_json((job_folder(data, id) / RESULT_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("%s of job %s cannot be read: %s", RESULT_FILE, id, type(error).__name__)
        return None


def job_folder_bytes(data: Path) -> dict[str, int]:
    """The bytes that each job takes."""
    return {path.name: _folder_bytes(path) for path in _list_folder(data / "jobs") if is_job_id(path.name)}


def over_quota(folder_bytes: Mapping[str, int], finished: Sequence[str], max_bytes: float) -> list[str]:
    """Those jobs, the first to end first, whose files must go so that all take `max_bytes` at most."""
    total, to_delete = sum(folder_bytes.values()), list[str]()
    for id in finished:
        if total <= max_bytes:
            break
        total -= folder_bytes.get(id, 0)
        to_delete.append(id)
    return to_delete


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in _list_folder(folder):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _list_folder(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be deleted: %s", path, error)
