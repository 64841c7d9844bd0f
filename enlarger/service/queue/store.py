"""The jobs on disk: one SQLite table, written by one thread, in which a job can end only once."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from enlarger.errors import InputError
from enlarger.service.faults import Fault, refuse
from enlarger.service.jobs import FINISHED, Ask, Job, Status

APPLICATION = 0x656E6C71  # "enlq" in the file's header: the database is ours
P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
        created REAL NOT NULL, attached INTEGER NOT NULL, key TEXT, started REAL, finished REAL,
        crashes INTEGER NOT NULL, starts INTEGER NOT NULL, ask TEXT NOT NULL, result TEXT, fault TEXT
    );
    CREATE INDEX jobs_status ON jobs (status, finished);
    CREATE INDEX jobs_created ON jobs (owner, created);
    CREATE UNIQUE INDEX jobs_key ON jobs (owner, key) WHERE key IS NOT NULL;
    """,
)
"""The step from each version of the schema to the next; the version is the file's `user_version`."""

COLUMNS = "id, owner, status, created, attached, key, started, finished, crashes, starts, ask, result, fault"
OVER = ", ".join(f"'{status}'" for status in sorted(FINISHED))


@dataclass(frozen=True)
class Database:
    """The open file. Used by one thread only."""

    path: Path
    link: sqlite3.Connection

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Open or make the file. Raises InputError for one that is damaged, or not ours, or of a newer version."""
        try:
            link = sqlite3.connect(path, timeout=5, isolation_level=None)
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot be opened ({error}); check the folder and its permissions") from error
        try:
            _prepare(path, link)
        except sqlite3.Error as error:
            link.close()
            raise _unusable(path, error) from error
        except BaseException:
            link.close()
            raise
        return cls(path, link)

    def close(self) -> None:
        self.link.close()

    def add(self, job: Job) -> Job:
        """Keep a new job. Where its owner used its key before, the earlier job is the answer."""
        values = _row_of(job)
        marks = ", ".join("?" * len(values))
        try:
            self.link.execute(f"INSERT INTO jobs ({COLUMNS}) VALUES ({marks})", values)
        except sqlite3.IntegrityError:
            earlier = self.get(job.id) if job.key is None else self.find_key(job.owner, job.key)
            if earlier is None:
                raise
            return earlier
        return job

    def get(self, id: str) -> Job | None:
        return self._one("id = ?", id)

    def find_key(self, owner: str, key: str) -> Job | None:
        return self._one("owner = ? AND key = ?", owner, key)

    def list(self, owner: str, status: Status | None, limit: int) -> Sequence[Job]:
        """The jobs of an owner, the newest first."""
        where, values = ("owner = ?", [owner]) if status is None else ("owner = ? AND status = ?", [owner, status])
        return self._all(f"{where} ORDER BY number DESC LIMIT ?", *values, limit)

    def unfinished(self) -> Sequence[Job]:
        """What waits or runs, in the order in which it came."""
        return self._all(f"status NOT IN ({OVER}) ORDER BY number")

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        return dict(self.link.execute("SELECT status, count(*) FROM jobs GROUP BY status"))

    def ids(self) -> frozenset[str]:
        return frozenset(row[0] for row in self.link.execute("SELECT id FROM jobs"))

    def ended(self, before: float) -> Sequence[str]:
        """Jobs that ended before a time, the first to end first."""
        query = f"SELECT id FROM jobs WHERE status IN ({OVER}) AND finished < ? ORDER BY finished, number"
        return [row[0] for row in self.link.execute(query, [before])]

    def claim(self, ids: Iterable[str], now: float) -> frozenset[str]:
        """Mark jobs as running; those are given for which that was possible, because they had not ended."""
        query = f"UPDATE jobs SET status = 'running', started = ?, starts = starts + 1 WHERE id = ? AND {_OPEN}"
        with self._whole():
            return frozenset(id for id in ids if self.link.execute(query, [now, id]).rowcount == 1)

    def requeue(self, id: str, crashes: int) -> bool:
        """Let a job wait again; False if it has ended."""
        query = f"UPDATE jobs SET status = 'queued', started = NULL, crashes = ? WHERE id = ? AND {_OPEN}"
        return self.link.execute(query, [crashes, id]).rowcount == 1

    def finish(self, job: Job) -> bool:
        """End a job as `job` says; False if it ended before: the first end stands."""
        query = f"UPDATE jobs SET status = ?, finished = ?, crashes = ?, result = ?, fault = ? WHERE id = ? AND {_OPEN}"
        values = [job.status, job.finished, job.crashes, _json(job.result), _json(job.fault and job.fault.to_json())]
        return self.link.execute(query, [*values, job.id]).rowcount == 1

    def remove(self, id: str) -> Status | None:
        """Forget a job; the status that it had, None if there was none."""
        found = self.get(id)
        self.link.execute("DELETE FROM jobs WHERE id = ?", [id])
        return None if found is None else found.status

    def _one(self, where: str, *values: Any) -> Job | None:
        return next(iter(self._all(where, *values)), None)

    def _all(self, where: str, *values: Any) -> Sequence[Job]:
        rows = self.link.execute(f"SELECT {COLUMNS} FROM jobs WHERE {where}", values).fetchall()
        return [_job_of(row) for row in rows]

    def _whole(self) -> "_Whole":
        return _Whole(self.link)


_OPEN = f"status NOT IN ({OVER})"


@dataclass(frozen=True)
class _Whole:
    """A transaction: all of it or nothing."""

    link: sqlite3.Connection

    def __enter__(self) -> None:
        self.link.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.link.execute("COMMIT")
        elif self.link.in_transaction:
            self.link.execute("ROLLBACK")


class Store:
    """The database behind one thread, so that the event loop never waits for the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False  # whether the last call failed for want of storage
        self._thread = ThreadPoolExecutor(1, "enlarger-store")
        self._database: Database | None = None

    async def open(self) -> None:
        self._database = await self._in_thread(Database.open, self.path)

    async def close(self) -> None:
        """Close the file; what is asked afterwards is refused."""
        database, self._database = self._database, None
        if database is not None:
            await self._in_thread(database.close)
        self._thread.shutdown(wait=False)

    async def do(self, call: Callable[Concatenate[Database, P], T], *args: P.args, **named: P.kwargs) -> T:
        """Run a method of Database. Raises Refused: `storage_full`, `storage_failed`; `draining` once it is closed."""
        if self._database is None:
            raise refuse(503, "draining", "the service is stopping; ask again in a moment", retry_after=5)
        try:
            result = await self._in_thread(call, self._database, *args, **named)
        except (sqlite3.Error, OSError) as error:
            self.failed = True
            raise refuse(500, *_storage(self.path, error)) from error
        self.failed = False
        return result

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **named))


def _prepare(path: Path, link: sqlite3.Connection) -> None:
    """Check whose file it is, and bring it to the newest version."""
    if (
        link.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        and _pragma(link, "application_id") != APPLICATION
    ):
        raise InputError(f"{path}: is a database of another program; move it aside or give another data folder")
    version = _pragma(link, "user_version")
    if version > len(MIGRATIONS):
        raise InputError(
            f"{path}: was written by a newer version of enlarger (its version is {version}, expected at most "
            f"{len(MIGRATIONS)}); update enlarger, or move the file aside"
        )
    if (found := link.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise sqlite3.DatabaseError(found)
    link.execute("PRAGMA journal_mode = WAL")
    link.execute("PRAGMA synchronous = NORMAL")
    link.execute("PRAGMA busy_timeout = 5000")
    link.execute("PRAGMA cache_size = -256")  # KiB: the table is small, and read by its keys
    for i in range(version, len(MIGRATIONS)):
        marks = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {i + 1};"
        link.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[i]} {marks} COMMIT;")


def _pragma(link: sqlite3.Connection, name: str) -> int:
    return link.execute(f"PRAGMA {name}").fetchone()[0]


def _unusable(path: Path, error: sqlite3.Error) -> InputError:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.OperationalError) and code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return InputError(f"{path}: cannot be used ({error}); check the disk's space and the folder's permissions")
    return InputError(
        f"{path}: is damaged or no database ({error}); move it aside (and {path.name}-wal and -shm, if there are any): "
        "a new one is made at the next start"
    )


def _storage(path: Path, error: Exception) -> tuple[str, str]:
    """The code and the message of a call that failed."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return "storage_full", "the disk of the service is full; free some space"
    return "storage_failed", f"the queue on disk cannot be used ({error}); see the disk of {path.name}"


def _row_of(job: Job) -> Sequence[Any]:
    ask, result, fault = _json(job.ask.to_json()), _json(job.result), _json(job.fault and job.fault.to_json())
    plain = (job.id, job.owner, job.status, job.created, job.attached, job.key, job.started, job.finished)
    return (*plain, job.crashes, job.starts, ask, result, fault)


def _job_of(row: Sequence[Any]) -> Job:
    id, owner, status, created, attached, key, started, finished, crashes, starts, ask, result, fault = row
    job = Job(id, Ask.from_json(json.loads(ask)), status, created, owner, bool(attached), key, started, finished)
    ended = None if fault is None else Fault.from_json(json.loads(fault))
    return replace(job, crashes=crashes, starts=starts, result=result and json.loads(result), fault=ended)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)
