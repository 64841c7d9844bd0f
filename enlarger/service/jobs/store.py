"""The jobs on disk: one SQLite table, written by one thread, in which a job can end only once."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import TypeAdapter

from enlarger.errors import InputError
from enlarger.service.jobs.job import FINISHED_STATUSES, Job, JobStatus, is_job_id
from enlarger.service.problems import DRAINING, Problem, ProblemError, problem_error

APPLICATION_ID = 0x656E6C71  # "enlq" in the file's header: the database is ours
STORAGE_BUSY = "storage_busy"  # the code of a file that is locked
log = logging.getLogger("enlarger.service.jobs")
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
    """
    ALTER TABLE jobs RENAME COLUMN key TO idempotency_key;
    ALTER TABLE jobs RENAME COLUMN starts TO attempts;
    ALTER TABLE jobs RENAME COLUMN ask TO spec;
    ALTER TABLE jobs RENAME COLUMN fault TO problem;
    """,
    "ALTER TABLE jobs ADD COLUMN fingerprint TEXT;",
    "CREATE TABLE unreadable (number INTEGER PRIMARY KEY AUTOINCREMENT, id, row TEXT NOT NULL);",
)
"""The step from each version of the schema to the next; the version is the file's `user_version`."""

COLUMNS = tuple(item.name for item in fields(Job))
PAGE_BYTES = 512 << 10  # bytes of one page of a list
JSON_COLUMNS = ("spec", "result", "problem")
JOB: TypeAdapter[Job] = TypeAdapter(Job)
MAX_UNREADABLE = 100  # rows that are kept aside
MIN_FREE_SHARE = 4  # a quarter of the file has to be free before it is written anew
JOURNAL_PAGES = 32  # after which the journal goes into the file
BUSY_MILLISECONDS = 250  # to wait for another program that has locked the file
FINISHED_SQL = ", ".join(f"'{status}'" for status in sorted(FINISHED_STATUSES))


@dataclass(frozen=True)
class JobPage:
    """Some of an owner's jobs."""

    jobs: tuple[Job, ...]
    has_more: bool  # there are older ones


@dataclass(frozen=True)
class JobDatabase:
    """The open file. Used by one thread only."""

    path: Path
    connection: sqlite3.Connection

    @classmethod
    def open(cls, path: Path) -> "JobDatabase":
        """Open or make the file. Raises InputError for one that is damaged, or not ours, or of a newer version."""
        try:
            connection = sqlite3.connect(path, timeout=5, isolation_level=None)
            connection.text_factory = _decode_text
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot be opened ({error}); check the folder and its permissions") from error
        try:
            _migrate(path, connection)
        except sqlite3.Error as error:
            connection.close()
            raise _unusable_error(path, error) from error
        except BaseException:
            connection.close()
            raise
        return cls(path, connection)

    @classmethod
    def open_reader(cls, path: Path) -> "JobDatabase":
        """Open the file a second time, to read only."""
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", isolation_level=None, uri=True)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        connection.text_factory = _decode_text
        return cls(path, connection)

    def close(self) -> None:
        self.connection.close()

    def set_aside_unreadable(self) -> Sequence[str]:
        """Move rows that are no jobs out of the way, into a table of their own; what they were, in a few words."""
        found: list[str] = []
        for number, *row in self.connection.execute(f"SELECT number, {', '.join(COLUMNS)} FROM jobs").fetchall():
            try:
                _from_row(row)
            except ValueError as error:
                found.append(f"job {str(row[0])[:40]!r} ({type(error).__name__})")
                with self._transaction():
                    values = [str(row[0]), json.dumps(dict(zip(COLUMNS, row, strict=True)), default=repr)]
                    self.connection.execute("INSERT INTO unreadable (id, row) VALUES (?, ?)", values)
                    self.connection.execute("DELETE FROM jobs WHERE number = ?", [number])
        newest = f"(SELECT number FROM unreadable ORDER BY number DESC LIMIT {MAX_UNREADABLE})"
        self.connection.execute(f"DELETE FROM unreadable WHERE number NOT IN {newest}")
        return found

    def add(self, job: Job) -> Job:
        """Store a new job. Where its owner used its key before, the earlier job is the answer."""
        values = _to_row(job)
        placeholders = ", ".join("?" * len(values))
        try:
            self.connection.execute(f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({placeholders})", values)
        except sqlite3.IntegrityError:
            earlier = (
                self.get(job.id)
                if job.idempotency_key is None
                else self.find_by_idempotency_key(job.owner, job.idempotency_key)
            )
            if earlier is None:
                raise
            return earlier
        return job

    def get(self, id: str) -> Job | None:
        return self._select_one("id = ?", id)

    def find_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        return self._select_one("owner = ? AND idempotency_key = ?", owner, idempotency_key)

    def list(self, owner: str, status: JobStatus | None, limit: int, after: str | None = None) -> JobPage:
        """The jobs of an owner, the newest first, or those older than one of them: so many, and so many bytes of JSON,
        but one at least. Raises ProblemError: 404 `job_not_found` where that one is not there."""
        conditions, values = ["owner = ?"], [owner]
        if status is not None:
            conditions, values = [*conditions, "status = ?"], [*values, status]
        if after is not None:
            conditions, values = [*conditions, "number < ?"], [*values, self._number_of(owner, after)]
        query = f"SELECT {', '.join(COLUMNS)} FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?"
        rows, num_bytes = list[Sequence[Any]](), 0
        for row in self.connection.execute(query, [*values, limit + 1]):
            num_bytes += sum(len(value) for value in row if isinstance(value, str))
            if rows and (len(rows) == limit or num_bytes > PAGE_BYTES):
                return JobPage(tuple(_readable(rows)), True)
            rows.append(row)
        return JobPage(tuple(_readable(rows)), False)

    def _number_of(self, owner: str, id: str) -> int:
        row = self.connection.execute("SELECT number FROM jobs WHERE owner = ? AND id = ?", [owner, id]).fetchone()
        if row is None:
            text = f"after is {id!a}, and there is no such job, or it has expired; ask after one before it"
            raise problem_error(404, "job_not_found", text, "after")
        return row[0]

    def unfinished(self) -> Sequence[Job]:
        """What waits or runs, in the order in which it came."""
        return self._select(f"status NOT IN ({FINISHED_SQL}) ORDER BY number")

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        return dict(self.connection.execute("SELECT status, count(*) FROM jobs GROUP BY status"))

    def ids(self) -> frozenset[str]:
        """Those of jobs, and of rows that were set aside."""
        return frozenset(
            row[0] for row in self.connection.execute("SELECT id FROM jobs UNION SELECT id FROM unreadable")
        )

    def finished_before(self, before: float, first_owner: str | None = None) -> Sequence[str]:
        """Jobs that ended before a time: those of an owner first, then the first to end first."""
        query = f"SELECT id FROM jobs WHERE status IN ({FINISHED_SQL}) AND finished < ?"
        order = "ORDER BY owner IS NOT ?, finished, number"
        return [row[0] for row in self.connection.execute(f"{query} {order}", [before, first_owner])]

    def mark_running(self, ids: Iterable[str], now: float) -> frozenset[str]:
        """Mark jobs as running; those are given for which that was possible, because they had not ended."""
        changes = "status = 'running', started = ?, attempts = attempts + 1"
        query = f"UPDATE jobs SET {changes} WHERE id = ? AND {_UNFINISHED_SQL}"
        with self._transaction():
            return frozenset(id for id in ids if self.connection.execute(query, [now, id]).rowcount == 1)

    def requeue(self, id: str, crashes: int) -> bool:
        """Let a job wait again; False if it has ended."""
        query = f"UPDATE jobs SET status = 'queued', started = NULL, crashes = ? WHERE id = ? AND {_UNFINISHED_SQL}"
        return self.connection.execute(query, [crashes, id]).rowcount == 1

    def finish(self, job: Job) -> bool:
        """End a job as `job` says; False if it ended before: the first end stands."""
        changed = ("status", "finished", "crashes", "result", "problem")
        assignments = ", ".join(f"{name} = ?" for name in changed)
        query = f"UPDATE jobs SET {assignments} WHERE id = ? AND {_UNFINISHED_SQL}"
        row = dict(zip(COLUMNS, _to_row(job), strict=True))
        return self.connection.execute(query, [*(row[name] for name in changed), job.id]).rowcount == 1

    def remove(self, id: str) -> JobStatus | None:
        """Forget a job; the status that it had, None if there was none."""
        job = self.get(id)
        self.connection.execute("DELETE FROM jobs WHERE id = ?", [id])
        return None if job is None else job.status

    def compact(self) -> None:
        """Give the disk back what deleted rows took."""
        if _pragma(self.connection, "freelist_count") * MIN_FREE_SHARE > _pragma(self.connection, "page_count"):
            self.connection.execute("VACUUM")
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _select_one(self, where: str, *values: Any) -> Job | None:
        return next(iter(self._select(where, *values)), None)

    def _select(self, where: str, *values: Any) -> Sequence[Job]:
        rows = self.connection.execute(f"SELECT {', '.join(COLUMNS)} FROM jobs WHERE {where}", values).fetchall()
        return list(_readable(rows))

    def _transaction(self) -> "_Transaction":
        return _Transaction(self.connection)


_UNFINISHED_SQL = f"status NOT IN ({FINISHED_SQL})"


@dataclass(frozen=True)
class _Transaction:
    """A transaction: all of it or nothing."""

    connection: sqlite3.Connection

    def __enter__(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.connection.execute("COMMIT")
        elif self.connection.in_transaction:
            self.connection.execute("ROLLBACK")


class JobStore:
    """The database behind one thread, so that the event loop never waits for the disk, and lists behind another, so
    that no job waits for them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.has_failed = False  # whether the last call failed for want of storage
        self._executor = ThreadPoolExecutor(1, "enlarger-store")
        self._list_executor = ThreadPoolExecutor(1, "enlarger-lists")
        self._database: JobDatabase | None = None
        self._list_database: JobDatabase | None = None

    async def open(self) -> None:
        self._database = await self._run_in_thread(self._executor, JobDatabase.open, self.path)
        for text in await self.run(JobDatabase.set_aside_unreadable):
            log.error("%s: a row cannot be read and is set aside: %s", self.path, text)
        self._list_database = await self._run_in_thread(self._list_executor, JobDatabase.open_reader, self.path)

    async def list(self, owner: str, status: JobStatus | None, limit: int, after: str | None) -> JobPage:
        """As `JobDatabase.list`. Raises ProblemError as `run`."""
        return await self._run(self._list_executor, self._list_database, JobDatabase.list, owner, status, limit, after)

    async def close(self) -> None:
        """Close the file; calls afterwards are refused."""
        databases = ((self._executor, self._database), (self._list_executor, self._list_database))
        self._database = self._list_database = None
        for executor, database in databases:
            if database is not None:
                await self._run_in_thread(executor, database.close)
            executor.shutdown(wait=False)

    async def run(self, method: Callable[Concatenate[JobDatabase, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a method of JobDatabase. Raises ProblemError `storage_full`, `storage_failed`; `draining` once closed."""
        return await self._run(self._executor, self._database, method, *args, **kwargs)

    async def _run(
        self,
        executor: ThreadPoolExecutor,
        database: JobDatabase | None,
        method: Callable[Concatenate[JobDatabase, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        if database is None:
            raise ProblemError(DRAINING)
        try:
            result = await self._run_in_thread(executor, method, database, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            self.has_failed = True
            raise ProblemError(_storage_problem(self.path, error)) from error
        self.has_failed = False
        return result

    async def _run_in_thread(
        self, executor: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: call(*args, **kwargs))


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    """Check whose file it is, and bring it to the newest version."""
    if (
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        and _pragma(connection, "application_id") != APPLICATION_ID
    ):
        raise InputError(f"{path}: is a database of another program; move it aside or give another data folder")
    version = _pragma(connection, "user_version")
    if version > len(MIGRATIONS):
        raise InputError(
            f"{path}: was written by a newer version of enlarger (its version is {version}, expected at most "
            f"{len(MIGRATIONS)}); update enlarger, or move the file aside"
        )
    if (check_result := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise sqlite3.DatabaseError(check_result)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {JOURNAL_PAGES}")
    connection.execute("PRAGMA cache_size = -256")  # KiB: the table is small, and read by its keys
    for i in range(version, len(MIGRATIONS)):
        pragmas = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {i + 1};"
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[i]} {pragmas} COMMIT;")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _unusable_error(path: Path, error: sqlite3.Error) -> InputError:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.OperationalError) and code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return InputError(f"{path}: cannot be used ({error}); check the disk's space and the folder's permissions")
    return InputError(
        f"{path}: is damaged or no database ({error}); move it aside (and {path.name}-wal and -shm, if there are any): "
        "a new one is made at the next start"
    )


def _storage_problem(path: Path, error: Exception) -> Problem:
    """The problem of a call that failed."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Problem(
            503, STORAGE_BUSY, "another program has locked the queue on disk; ask again in a moment", None, 2
        )
    if code == sqlite3.SQLITE_FULL:
        return Problem(500, "storage_full", "the disk of the service is full; free some space")
    return Problem(500, "storage_failed", f"the queue on disk cannot be used ({error}); see the disk of {path.name}")


def _decode_text(data: bytes) -> str:
    """A text of the database; one that is none spoils its row, and not the whole answer."""
    return data.decode("utf-8", "replace")


def _readable(rows: Iterable[Sequence[Any]]) -> Iterable[Job]:
    for row in rows:
        try:
            yield _from_row(row)
        except ValueError as error:
            log.error("the row of job %r cannot be read (%s) and is left out", row[0], type(error).__name__)


def _to_row(job: Job) -> Sequence[Any]:
    values = JOB.dump_python(job, mode="json")
    return [
        json.dumps(values[name], ensure_ascii=False)
        if name in JSON_COLUMNS and values[name] is not None
        else values[name]
        for name in COLUMNS
    ]


def row_bytes(job: Job) -> int:
    """What the texts of a job's row take."""
    return sum(len(value.encode()) for value in _to_row(job) if isinstance(value, str))


def _from_row(row: Sequence[Any]) -> Job:
    """Raises ValueError for a row that is no job."""
    values = dict(zip(COLUMNS, row, strict=True))
    if not is_job_id(str(values["id"])):
        raise ValueError("an id of another form")
    return JOB.validate_python(values | {name: json.loads(values[name] or "null") for name in JSON_COLUMNS})
