"""The files of jobs: what a worker left, and what is old or too much."""

import errno
import logging
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter

from enlarger.image.atomic_write import atomic_write
from enlarger.service.jobs.job import RESULT_FILE, JobResult, is_job_id, job_folder
from enlarger.service.problems import problem_error

RESULT: TypeAdapter[JobResult] = TypeAdapter(JobResult)
log = logging.getLogger("enlarger.service.jobs")


@contextmanager
def write_job_file(path: Path) -> Generator[BinaryIO]:
    """A stream whose bytes are the file when all of them are on the disk. Raises ProblemError where it takes none."""
    try:
        with atomic_write(path, single_writer=True) as stream:
            yield stream
    except OSError as error:
        reason, is_full = error.strerror or type(error).__name__, error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = "storage_full" if is_full else "storage_failed"
        text = f"the result cannot be stored ({reason}); the service needs a place to write to"
        raise problem_error(500, code, text) from error


def remove_job_folder(data: Path, id: str) -> None:
    """Delete a job's files; what cannot be deleted is reported and left for the next start."""
    remove_path(job_folder(data, id))


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
    return {path.name: folder_bytes(path) for path in list_folder(data / "jobs") if is_job_id(path.name)}


def spool_bytes(data: Path) -> int:
    """The bytes of uploads that are being received."""
    return folder_bytes(data / "spool")


def folder_bytes(folder: Path) -> int:
    """The bytes of the files in a folder, those below aside."""
    total = 0
    for path in list_folder(folder):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def list_folder(folder: Path) -> Iterable[Path]:
    """What lies in a folder; nothing where there is none."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def remove_path(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it; what cannot be deleted is reported."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be deleted: %s", path, error)
