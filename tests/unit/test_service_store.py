"""The jobs on disk: kept whole, ended once, and a file that is not ours is left alone."""

import json
import sqlite3
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from enlarger.errors import InputError
from enlarger.service.jobs.job import Job, JobSpec, OutputOptions, new_job_id
from enlarger.service.jobs.store import APPLICATION_ID, MIGRATIONS, PAGE_BYTES, JobDatabase, JobPage, JobStore
from enlarger.service.problems import Problem, ProblemError
from tests.support.queues import async_test

SPEC = JobSpec(
    "refine",
    "sd",
    {"prompt": "eine Möwe \u0000 😀", "seed": 0, "strength": 0.0},
    image="image.png",
    size=(8, 9),
    output=OutputOptions("webp", 80),
    notes=("grey",),
)
FULL = Problem(500, "worker_died", "it died", None, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.sqlite3"


@pytest.fixture
def database(path: Path):
    database = JobDatabase.open(path)
    yield database
    database.close()


def job(created: float = 1.0, **values) -> Job:
    return Job(**{"id": new_job_id(), "spec": SPEC, "status": "queued", "created": created} | values)


def ended(job: Job, status="succeeded", at: float = 9.0, **values) -> Job:
    return replace(job, status=status, finished=at, **values)


def test_a_job_comes_back_as_it_was_kept(database: JobDatabase) -> None:
    plain = job(owner="abc", attached=True, idempotency_key="k")
    over = job(status="failed", started=2.5, finished=3.5, crashes=2, attempts=3, result={"images": []}, problem=FULL)
    assert database.add(plain) is plain and database.add(over) is over
    assert [database.get(plain.id), database.get(over.id)] == [plain, over]
    assert database.get("nothing") is None and database.find_by_idempotency_key("abc", "k") == plain


def test_what_is_kept_is_there_after_the_file_was_closed(path: Path) -> None:
    first, kept = JobDatabase.open(path), job()
    first.add(kept)
    first.close()
    again = JobDatabase.open(path)
    assert again.get(kept.id) == kept
    assert again.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert again.connection.execute("PRAGMA synchronous").fetchone() == (1,)
    assert again.connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    again.close()


def test_a_file_of_the_first_version_is_brought_to_the_newest(path: Path) -> None:
    """Its columns were called `key`, `starts`, `ask` and `fault`."""
    kept = job(status="failed", idempotency_key="k", attempts=2, problem=FULL)
    old = sqlite3.connect(path)
    old.executescript(MIGRATIONS[0] + f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;")
    columns = "id, owner, status, created, attached, key, crashes, starts, ask, fault"
    values = [kept.id, "", "failed", 1.0, 0, "k", 0, 2, json.dumps(asdict(SPEC)), json.dumps(asdict(FULL))]
    old.execute(f"INSERT INTO jobs ({columns}) VALUES ({', '.join('?' * len(values))})", values)
    old.commit()
    old.close()
    for _ in range(2):
        database = JobDatabase.open(path)
        assert database.get(kept.id) == kept == database.find_by_idempotency_key("", "k")
        database.close()


def test_a_job_ends_once(database: JobDatabase) -> None:
    kept = database.add(job())
    assert database.mark_running([kept.id, "nothing"], 5.0) == {kept.id}
    assert database.finish(ended(kept, result={"images": [{"file": "a", "width": 1, "height": 1}]}))
    assert not database.finish(ended(kept, "failed", problem=FULL))
    assert not database.requeue(kept.id, 1) and database.mark_running([kept.id], 6.0) == set()
    found = database.get(kept.id)
    assert found == ended(kept, result={"images": [{"file": "a", "width": 1, "height": 1}]}, started=5.0, attempts=1)


def test_a_job_that_waits_again_has_not_started(database: JobDatabase) -> None:
    kept = database.add(job())
    database.mark_running([kept.id], 5.0)
    assert database.requeue(kept.id, 1)
    assert database.get(kept.id) == replace(kept, attempts=1, crashes=1)


def test_the_same_key_gives_the_earlier_job_to_its_owner_alone(database: JobDatabase) -> None:
    first = database.add(job(owner="a", idempotency_key="k"))
    assert database.add(job(owner="a", idempotency_key="k")) == first
    other = job(owner="b", idempotency_key="k")
    assert database.add(other) is other and database.add(job(owner="a")).idempotency_key is None
    assert database.add(job(owner="a")) != first
    assert database.add(replace(first, idempotency_key=None)) == first, "an id is taken"


def test_a_page_of_jobs_is_bounded_in_bytes(database: JobDatabase) -> None:
    text = "x" * (PAGE_BYTES // 3)
    jobs = [database.add(job(owner="a", spec=JobSpec("generate", "sd", {"prompt": text}))) for _ in range(4)]
    assert database.list("a", None, 100) == JobPage((jobs[3], jobs[2]), True)
    assert database.list("a", None, 100, jobs[2].id) == JobPage((jobs[1], jobs[0]), False)
    huge = database.add(job(owner="b", spec=JobSpec("generate", "sd", {"prompt": text * 9})))
    assert database.list("b", None, 100) == JobPage((huge,), False)


def test_jobs_are_listed_newest_first_and_wait_oldest_first(database: JobDatabase) -> None:
    jobs = [database.add(job(created=5.0 - i, owner="a" if i < 3 else "b")) for i in range(5)]
    database.finish(ended(jobs[1]))
    assert database.list("a", None, 3) == JobPage((jobs[2], ended(jobs[1]), jobs[0]), False)
    assert database.list("a", None, 2) == JobPage((jobs[2], ended(jobs[1])), True)
    assert database.list("a", None, 2, jobs[1].id) == JobPage((jobs[0],), False)
    assert database.list("a", "queued", 1) == JobPage((jobs[2],), True)
    assert database.list("c", None, 9) == JobPage((), False)
    for owner, after in (("a", "x" * 22), ("b", jobs[1].id)):  # one that is gone, and another's
        with pytest.raises(ProblemError, match="there is no such job, or it has expired; ask after one before it"):
            database.list(owner, None, 9, after)
    assert list(database.unfinished()) == [jobs[0], jobs[2], jobs[3], jobs[4]]
    assert database.counts() == {"queued": 4, "succeeded": 1}
    assert database.ids() == {one.id for one in jobs}


def test_what_has_ended_is_found_by_its_time(database: JobDatabase) -> None:
    jobs = [database.add(job()) for _ in range(4)]
    for at, one in zip((7.0, 3.0, 5.0), jobs, strict=False):
        database.finish(ended(one, at=at))
    assert list(database.finished_before(7.0)) == [jobs[1].id, jobs[2].id]
    assert database.remove(jobs[1].id) == "succeeded" and database.remove(jobs[1].id) is None
    assert list(database.finished_before(99.0)) == [jobs[2].id, jobs[0].id]


def test_taking_a_job_is_whole_or_nothing(database: JobDatabase) -> None:
    jobs = [database.add(job()) for _ in range(3)]
    with pytest.raises(sqlite3.Error):
        database.mark_running([jobs[0].id, object()], 5.0)  # pyright: ignore
    assert Counter(one.status for one in database.unfinished()) == {"queued": 3}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.write_bytes(b"not a database" * 100), "is damaged or no database"),
        (lambda path: path.mkdir(), "cannot be opened"),
        (lambda path: foreign(path), "is a database of another program; move it aside"),
        (lambda path: damaged(path), "is damaged or no database"),
        (lambda path: newer(path), "was written by a newer version of enlarger (its version is 99"),
    ],
    ids=["text", "folder", "foreign", "damaged", "newer"],
)
def test_a_file_that_is_not_ours_is_refused_and_left_alone(path: Path, make, text: str) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(InputError) as caught:
        JobDatabase.open(path)
    assert str(path) in str(caught.value) and text in str(caught.value)
    assert before == (path.read_bytes() if path.is_file() else b"")


def foreign(path: Path) -> None:
    link = sqlite3.connect(path)
    link.execute("CREATE TABLE moz_bookmarks (id INTEGER)")
    link.close()


def newer(path: Path) -> None:
    database = JobDatabase.open(path)
    database.connection.execute("PRAGMA user_version = 99")
    database.close()


def damaged(path: Path) -> None:
    database = JobDatabase.open(path)
    for _ in range(200):
        database.add(job())
    database.close()
    content = bytearray(path.read_bytes())
    content[5000:20000] = b"\x5a" * 15000
    path.write_bytes(content)


@async_test
async def test_a_full_disk_is_told_as_such_and_passes(path: Path) -> None:
    store = JobStore(path)
    await store.open()
    await store.run(lambda database: database.connection.execute("PRAGMA max_page_count = 1").fetchall())
    with pytest.raises(ProblemError) as caught:
        for _ in range(200):
            await store.run(JobDatabase.add, job())
    assert (caught.value.problem.status, caught.value.problem.code) == (500, "storage_full") and store.has_failed
    await store.run(lambda database: database.connection.execute("PRAGMA max_page_count = 100000").fetchall())
    kept = job()
    assert await store.run(JobDatabase.add, kept) is kept and not store.has_failed
    await store.close()


@async_test
async def test_a_disk_that_takes_nothing_is_told_as_such(path: Path) -> None:
    store = JobStore(path)
    await store.open()
    await store.run(lambda database: database.connection.execute("PRAGMA query_only = ON"))
    with pytest.raises(ProblemError) as caught:
        await store.run(JobDatabase.add, job())
    assert caught.value.problem.code == "storage_failed" and "readonly" in caught.value.problem.message
    assert str(path.parent) not in caught.value.problem.message
    assert await store.run(JobDatabase.counts) == {}
    await store.close()


@async_test
async def test_a_closed_store_refuses(path: Path) -> None:
    store = JobStore(path)
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(ProblemError) as caught:
        await store.run(JobDatabase.counts)
    assert (caught.value.problem.status, caught.value.problem.code) == (503, "draining")
