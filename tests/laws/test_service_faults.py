"""Whenever the server or a worker is killed: the database opens, no job is lost, and none is completed twice."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from enlarger.service.jobs.files import RESULT
from enlarger.service.jobs.job import Job, job_folder
from enlarger.service.jobs.store import JobDatabase

KILLS = int(os.environ.get("TEST_KILLS", "10"))
JOBS = 6 * KILLS


@dataclass
class Owner:
    """A process with a queue, and what it said."""

    process: subprocess.Popen[str]
    given: dict[str, str]  # the ids of accepted jobs, by key
    ready: threading.Event = field(default_factory=threading.Event)
    all: bool = False

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            match line.split():
                case ["ready"]:
                    self.ready.set()
                case ["given", key, id]:
                    assert self.given.setdefault(key, id) == id, "an accepted job was lost"
                case ["all"]:
                    self.all = True
        self.ready.set()

    def kill_worker(self) -> None:
        for child in psutil.Process(self.process.pid).children():
            child.kill()


@contextmanager
def owner(data: Path, given: dict[str, str], jobs: int = JOBS) -> Iterator[Owner]:
    """Start a process that owns the queue; it is killed at the end if it has not ended."""
    command = [sys.executable, "-m", "tests.support.queue_owner", str(data), str(jobs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        owner = Owner(process, given)
        reader = threading.Thread(target=owner.read)
        reader.start()
        try:
            assert owner.ready.wait(60)
            yield owner
        finally:
            process.kill()
            reader.join()


def jobs_of(data: Path) -> dict[str, Job]:
    """All jobs, by key; the database must be whole."""
    link = sqlite3.connect(data / "queue.sqlite3")
    assert link.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    link.close()
    database = JobDatabase.open(data / "queue.sqlite3")
    page = database.list("", None, 10_000)
    jobs = [*page.jobs]
    while page.has_more:
        page = database.list("", None, 10_000, jobs[-1].id)
        jobs += page.jobs
    database.close()
    return {job.idempotency_key or "": job for job in jobs}


def check(data: Path, given: dict[str, str]) -> None:
    """Every accepted job is there; what has succeeded was completed once, and its files are whole."""
    found = jobs_of(data)
    assert {key: found[key].id for key in given} == given
    for job in found.values():
        folder = job_folder(data, job.id)
        noted = (folder / "runs").read_text().split()[::2] if (folder / "runs").exists() else []
        assert noted.count("end") <= 1 and "again" not in noted, "completed twice"
        if (folder / "done.json").exists():
            done = RESULT.validate_json((folder / "done.json").read_bytes())
            assert job.status in ("running", "succeeded") and (job.result is None or job.result == done)
        else:
            assert job.status != "succeeded"


def test_no_job_is_lost_or_completed_twice_whoever_is_killed(tmp_path: Path) -> None:
    chance, given = random.Random(5), dict[str, str]()
    for round_ in range(KILLS // 2):
        with owner(tmp_path, given) as one:
            time.sleep(chance.uniform(0, 0.3))
            one.kill_worker()
            time.sleep(chance.uniform(0, 0.3))
            if round_ % 3 == 2:
                one.kill_worker()  # and its server an instant later
        check(tmp_path, given)
    with owner(tmp_path, given) as last:
        assert last.process.wait(60) == 0
    check(tmp_path, given)
    assert last.all and len(given) == JOBS
    for job in jobs_of(tmp_path).values():
        died = job.problem is not None and job.problem.code == "worker_died" and job.crashes == 2
        assert job.status == "succeeded" or (job.status == "failed" and died)


def test_a_queue_that_is_left_alone_loses_nothing_either(tmp_path: Path) -> None:
    given = dict[str, str]()
    with owner(tmp_path, given, 5) as one:
        assert one.process.wait(60) == 0 and one.all
    check(tmp_path, given)
    assert [job.status for job in jobs_of(tmp_path).values()] == ["succeeded"] * 5
    assert {job.attempts for job in jobs_of(tmp_path).values()} == {1}
