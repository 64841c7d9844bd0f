"""The folder of the service: only one of our own is used, and only what has the form of our own files is deleted."""

import logging
import re
import time
from collections.abc import Container, Iterable
from pathlib import Path

from enlarger.errors import InputError
from enlarger.service.jobs.files import list_folder, remove_path
from enlarger.service.jobs.job import is_job_id

MARKER = "enlarger-service"  # a file that says whose folder it is
MARKER_TEXT = "This folder belongs to `enlarger serve`. It deletes old jobs in here by itself.\n"
DATABASE = "queue.sqlite3"
HARMLESS_NAMES = {"lost+found", ".DS_Store"}  # what systems put into a folder that is empty otherwise
ORPHAN_SECONDS = 60.0  # a folder without a job may be that of a request that is just being received
MAX_NAMES_REPORTED = 5
_SPOOL_NAME = re.compile(r"[A-Za-z0-9_-]{22}(-[a-z0-9]{1,16})?")
log = logging.getLogger("enlarger.service.jobs")


def claim_folder(data: Path) -> None:
    """Make the folder of the service. Raises InputError where that cannot be, and for a folder of something else."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any((data / name).is_file() for name in (MARKER, DATABASE)):  # a database says itself whose it is
            _check_empty(data)
            mark_folder(data)
    except OSError as error:
        raise _unusable(data, error) from error


def mark_folder(data: Path) -> None:
    """Say that a folder is the service's, and make the folders in it. Raises InputError where that cannot be."""
    try:
        (data / MARKER).write_text(MARKER_TEXT)
        for folder in (data / "jobs", data / "spool"):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(data, error) from error


def _unusable(data: Path, error: OSError) -> InputError:
    return InputError(f"{data}: cannot hold the service's files ({error}); give another data folder")


def _check_empty(data: Path) -> None:
    names = sorted(path.name for path in data.iterdir() if path.name not in HARMLESS_NAMES)
    if names:
        found = f"holds files of something else ({_some_of(names)}), expected an empty folder or one of this service"
        raise InputError(f"{data}: {found}; give another data folder")


def empty_spool(data: Path) -> None:
    """Delete uploads that an earlier process was receiving; what is not of our own form stays, and is reported."""
    foreign: list[str] = []
    for path in list_folder(data / "spool"):
        if _SPOOL_NAME.fullmatch(path.name) and (path.is_file() or path.is_dir()) and not path.is_symlink():
            remove_path(path)
        else:
            foreign.append(path.name)
    _report_foreign(data / "spool", foreign)


def remove_orphan_folders(data: Path, known_ids: Container[str]) -> None:
    """Delete the folders of jobs that are not known; what is not of our own form stays, and is reported."""
    before, foreign = time.time() - ORPHAN_SECONDS, list[str]()
    for path in list_folder(data / "jobs"):
        if not is_job_id(path.name) or path.is_symlink() or not path.is_dir():
            foreign.append(path.name)
        elif path.name not in known_ids and path.stat().st_mtime < before:
            remove_path(path)
    _report_foreign(data / "jobs", foreign)


def _report_foreign(folder: Path, names: Iterable[str]) -> None:
    if names := sorted(names):
        log.warning("%s holds what is not the service's and is left there: %s", folder, _some_of(names))


def _some_of(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:MAX_NAMES_REPORTED])
    return shown if len(names) <= MAX_NAMES_REPORTED else f"{shown} and {len(names) - MAX_NAMES_REPORTED} more"
