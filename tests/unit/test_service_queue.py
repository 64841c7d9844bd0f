"""The queue with fake workers: who runs when, what everybody is told, and what happens when something breaks."""

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from enlarger.errors import InputError
from enlarger.service.jobs import disk_usage, lock, retention
from enlarger.service.jobs import manager as queue_file
from enlarger.service.jobs.admission import price
from enlarger.service.jobs.data_folder import claim_folder
from enlarger.service.jobs.events import MAX_EVENTS, MAX_FINISHED_LOGS, EventLog, EventLogs
from enlarger.service.jobs.job import Idempotency, Job, JobEvent, JobSpec, job_folder, new_job_id
from enlarger.service.jobs.lifecycle import MAX_ATTEMPTS
from enlarger.service.jobs.manager import JobManager
from enlarger.service.jobs.progress_estimator import DEFAULT_SECONDS, DurationStats, ProgressEstimator
from enlarger.service.jobs.store import JobDatabase
from enlarger.service.problems import Problem, ProblemError
from enlarger.service.settings import Bounds, ModelSettings
from enlarger.service.workers import supervisor
from tests.support.queues import (
    RecordingMetrics,
    async_test,
    data_of,
    make_job_spec,
    new_job_folder,
    queue_of,
    running,
    runs,
    settings,
    submit_job,
    until,
)

SLOW = {"steps": 2000, "seconds": 0.005}
QUICK = {"steps": 1, "seconds": 0.0}


async def seen(queue: JobManager, id: str, after: int = 0) -> list[JobEvent]:
    return [event async for event in queue.events(id, after)]


def refused(call: Callable[[], object]) -> Problem:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.problem


async def refused_later(work) -> Problem:
    with pytest.raises(ProblemError) as caught:
        await work
    return caught.value.problem


# what a job goes through


@async_test
async def test_a_job_runs_to_its_end_and_everybody_is_told(tmp_path: Path) -> None:
    metrics = RecordingMetrics()
    async with running(tmp_path, metrics=metrics) as queue:
        job = await submit_job(queue, {"preview": True})
        assert (job.status, job.attached, queue.counts()["running"]) == ("queued", False, 1)
        over = await queue.wait(job.id)
        assert (over.status, over.attempts, over.crashes, over.problem) == ("succeeded", 1, 0, None)
        assert over.result is not None and over.result.images[0].width == 64
        assert over.created <= (over.started or 0) <= (over.finished or 0)
        events = await seen(queue, job.id)
        kinds = [event.kind for event in events if event.data["stage"] != "loading"]
        assert kinds == ["queued", "started", *(["progress", "preview"] * 3), "succeeded"]
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert [event.data["index"] for event in events if event.kind == "preview"] == [0, 1, 2]
        progress = [event.data["progress"] for event in events]
        assert progress == sorted(progress) and progress[-1] == 1.0
        assert (await queue.get(job.id), queue.progress(over).progress) == (over, 1.0)
        assert queue.counts() == {"queued": 0, "running": 0, "succeeded": 1, "failed": 0, "canceled": 0}
        assert runs(queue, job.id) == ["begin", "end"]
    assert metrics.of("images") == [("generate", "sd", 1)] and metrics.of("output_pixels") == [(64 * 48,)]
    assert metrics.of("batch_size") == [(1,)]
    assert len(metrics.of("queue_wait_seconds")) == 1 and ("sd", True) in metrics.of("model_loaded")
    assert metrics.of("queue_size")[-1] == metrics.of("requests_running")[-1] == (0,)
    assert dict(metrics.of("jobs"))["succeeded"] == 1


@async_test
async def test_events_can_be_replayed_from_any_number(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        job = await submit_job(queue)
        live = await seen(queue, job.id)
        for after in (0, 2, len(live) - 1):
            assert await seen(queue, job.id, after) == live[after:]
        assert await seen(queue, job.id, len(live)) == []
        assert await seen(queue, job.id, 5000) == live, "a number of an earlier process starts again"


@async_test
async def test_jobs_run_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        jobs = [await submit_job(queue, QUICK) for _ in range(6)]
        over = [await queue.wait(job.id) for job in jobs]
        begun = [job.started or 0 for job in over]
        assert begun == sorted(begun)
        assert [job.id for job in (await queue.list("", "succeeded")).jobs] == [job.id for job in reversed(jobs)]


@async_test
async def test_a_waiting_job_is_told_its_position_and_when_it_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        first = await submit_job(queue, SLOW)
        others = [await submit_job(queue, QUICK) for _ in range(3)]
        assert [queue.progress(job).position for job in (first, *others)] == [0, 1, 2, 3]
        assert [queue.progress(job).eta_seconds for job in others] == [None] * 3, "nothing of the kind has ended yet"
        assert queue.expected_wait() > 3 * DEFAULT_SECONDS
        await queue.cancel(others[0].id)
        assert [queue.progress(job).position for job in others] == [None, 1, 2]
        await queue.cancel(first.id)
        await queue.wait(others[2].id)
        seen_events = [event.data["position"] for event in await seen(queue, others[2].id) if event.kind == "queued"]
        assert seen_events == [3, 2, 1]


@async_test
async def test_an_error_of_the_worker_is_the_jobs(tmp_path: Path) -> None:
    problem = Problem(500, "non_finite_output", "NaN", None)
    async with running(tmp_path) as queue:
        job = await submit_job(queue, QUICK | {"fail": asdict(problem)})
        over = await queue.wait(job.id)
        assert (over.status, over.problem) == ("failed", problem)
        other = await queue.wait((await submit_job(queue, QUICK | {"fail": {"code": 1}})).id)
        assert other.problem is not None and other.problem.code == "internal"
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded"


@async_test
async def test_an_unknown_job_is_said_to_be_unknown(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        id = new_job_id()
        assert await queue.get(id) is None and await queue.cancel(id) is None
        await queue.delete(id)
        assert (await refused_later(queue.wait(id))).code == "job_not_found"
        assert (await refused_later(seen(queue, id))).status == 404


# batches


@async_test
async def test_jobs_that_are_alike_run_together(tmp_path: Path) -> None:
    metrics = RecordingMetrics()
    async with running(tmp_path, "--slow", "0.2", batch=3, metrics=metrics) as queue:
        blocker = await submit_job(queue, {"steps": 20, "seconds": 0.01})
        jobs = [await submit_job(queue, QUICK, options={"seed": i, "prompt": str(i)}) for i in range(4)]
        odd = await submit_job(queue, QUICK, options={"count": 2})
        jobs.append(await submit_job(queue, QUICK, options={"seed": 9}))
        for job in (blocker, odd, *jobs):
            assert (await queue.wait(job.id)).status == "succeeded"
    assert [size for (size,) in metrics.of("batch_size")] == [1, 3, 2, 1]


@pytest.mark.parametrize(("device", "size"), [("cpu", 1), ("cuda:0", 4)])
@async_test
async def test_the_default_batch_depends_on_the_device(tmp_path: Path, device: str, size: int) -> None:
    metrics = RecordingMetrics()
    async with running(tmp_path, "--device", device, metrics=metrics) as queue:
        await submit_job(queue, {"steps": 10, "seconds": 0.01}, options={"count": 2})
        for job in [await submit_job(queue, QUICK) for _ in range(5)]:
            await queue.wait(job.id)
    assert max(size for (size,) in metrics.of("batch_size")) == size


@async_test
async def test_only_the_guilty_one_of_a_batch_fails(tmp_path: Path) -> None:
    metrics = RecordingMetrics()
    async with running(tmp_path, batch=4, metrics=metrics) as queue:
        await submit_job(queue, {"steps": 10, "seconds": 0.01}, options={"count": 2})
        good = {"steps": 2, "crash": None}
        # the worker looks at the crash option of each; the options of all are the same for `alike`
        jobs = [await queue.submit(replace(make_job_spec(good)), id=new_job_folder(queue)) for _ in range(3)]
        bad = await submit_job(queue, {"steps": 2, "crash": "always"})
        ended = [await queue.wait(job.id) for job in (*jobs, bad)]
        assert [job.status for job in ended] == ["succeeded"] * 3 + ["failed"]
        assert ended[-1].problem is not None and ended[-1].problem.code == "worker_died" and ended[-1].crashes == 2


# workers that die


@async_test
async def test_a_job_whose_worker_died_once_is_run_again(tmp_path: Path) -> None:
    metrics = RecordingMetrics()
    async with running(tmp_path, metrics=metrics) as queue:
        job = await submit_job(queue, QUICK | {"crash": "once"})
        behind = await submit_job(queue, QUICK)
        over, next_ = await queue.wait(job.id), await queue.wait(behind.id)
        assert (over.status, over.crashes, over.attempts) == ("succeeded", 1, 2)
        assert (over.started or 0) < (next_.started or 0), "it comes back to the front"
        assert runs(queue, job.id) == ["begin", "begin", "end"]
        kinds = [event.kind for event in await seen(queue, job.id)]
        assert kinds.count("started") == 2 and kinds.count("succeeded") == 1
        assert metrics.of("worker_restarts") == [(1,)]


@async_test
async def test_a_job_that_kills_its_workers_fails_and_the_next_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        bad, good = await submit_job(queue, QUICK | {"crash": "always"}), await submit_job(queue, QUICK)
        over = await queue.wait(bad.id)
        assert over.status == "failed" and over.problem is not None
        assert (over.problem.status, over.problem.code, over.crashes) == (500, "worker_died", 2)
        assert "and again when it was tried a second time" in over.problem.message
        assert (await queue.wait(good.id)).status == "succeeded"


@async_test
async def test_a_job_that_was_complete_when_its_worker_died_is_not_run_again(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        job = await submit_job(queue, QUICK | {"crash": "after"})
        assert (await queue.wait(job.id)).status == "succeeded" and runs(queue, job.id) == ["begin", "end"]


@async_test
async def test_a_worker_that_forgets_its_job_is_taken_for_dead(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        over = await queue.wait((await submit_job(queue, QUICK | {"mute": True})).id)
        assert (over.status, over.crashes) == ("failed", 2) and over.problem is not None
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded"


@async_test
async def test_nonsense_from_a_worker_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path) as queue:
        assert (await queue.wait((await submit_job(queue, {"garble": True})).id)).status == "succeeded"
        runs_ = queue._pool
        for line in (b'{"event": "progress", "id": "x"}', b'{"event": "models"}', b'{"event": "new"}', b"{}"):
            runs_.workers[0]._num_invalid_lines = 0
            runs_.workers[0]._handle_line(line)
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded"
    for reason in ("json_invalid", "missing", "union_tag_invalid", "union_tag_not_found"):
        assert reason in caplog.text
    assert "a line that is no message" in caplog.text


@async_test
async def test_a_worker_that_fails_to_start_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTART_DELAY", 0.01)
    (tmp_path / "left").write_text("3")
    async with running(tmp_path / "data", "--die", str(tmp_path / "left")) as queue:
        assert queue.state == "READY" and (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded"


@async_test
async def test_a_worker_that_cannot_start_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTART_DELAY", 0.01)
    (tmp_path / "left").write_text("99")
    queue = queue_of(tmp_path / "data", "--die", str(tmp_path / "left"))
    await queue.start()
    assert queue.state == "STARTING" and not queue.is_ready
    problem = refused(lambda: queue.check_capacity(""))
    assert (problem.status, problem.code) == (503, "model_loading") and problem.retry_after is not None
    await until(lambda: queue.state == "SETUP_FAILED")
    assert not queue.is_ready and int((tmp_path / "left").read_text()) == 99 - supervisor.MAX_START_FAILURES
    assert refused(lambda: queue.check_capacity("")).code == "no_worker"
    await queue.drain()


@async_test
async def test_who_waits_is_told_when_no_worker_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTART_DELAY", 0.01)
    left = tmp_path / "left"
    left.write_text("0")
    async with running(tmp_path / "data", "--die", str(left)) as queue:
        first = await submit_job(queue, QUICK | {"crash": "always"})
        jobs = [await submit_job(queue, QUICK, attached=attached) for attached in (True, False)]
        left.write_text("99")
        over = await queue.wait(jobs[0].id)
        assert over.problem is not None and (over.problem.status, over.problem.code) == (503, "no_worker")
        assert queue.state == "DEFUNCT"
        assert [queue.progress(job).position for job in (first, jobs[1])] == [1, 2]
    restarted = queue_of(tmp_path / "data")
    await restarted.start()
    assert (await restarted.wait(jobs[1].id)).status == "succeeded"
    await restarted.drain()


# cancel


@async_test
async def test_a_waiting_job_is_canceled_at_once(tmp_path: Path) -> None:
    metrics = RecordingMetrics()
    async with running(tmp_path, metrics=metrics) as queue:
        first, second = await submit_job(queue, SLOW), await submit_job(queue)
        over = await queue.cancel(second.id, "disconnect")
        assert over is not None and over.problem is not None
        assert (over.status, over.problem.status, over.problem.code) == ("canceled", 499, "canceled")
        assert await queue.cancel(second.id) == over and runs(queue, second.id) == []
        assert [event.kind for event in await seen(queue, second.id)][-1] == "canceled"
        await queue.cancel(first.id)
    assert metrics.total("cancelled") == {"disconnect": 1, "client": 1}


@async_test
async def test_a_running_job_frees_its_worker_within_a_step(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        job = await submit_job(queue, SLOW)
        await until(lambda: queue.progress(job).step)
        waiting = asyncio.create_task(queue.wait(job.id))
        began = time.monotonic()
        await queue.cancel(job.id)
        over = await queue.wait((await submit_job(queue, QUICK)).id)
        assert over.status == "succeeded" and time.monotonic() - began < 1
        assert (await waiting).status == "canceled" and runs(queue, job.id) == ["begin"]


@async_test
async def test_a_worker_that_does_not_let_go_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "CANCEL_SECONDS", 0.1)
    async with running(tmp_path, batch=2) as queue:
        await submit_job(queue, {"steps": 10, "seconds": 0.01}, options={"count": 2})
        pair = [await submit_job(queue, {"steps": 2, "hang": True}) for _ in range(2)]
        await until(lambda: runs(queue, pair[1].id) == ["begin"])
        assert (await queue.cancel(pair[0].id)).status == "canceled"
        await until(lambda: runs(queue, pair[1].id) == ["begin", "begin"])
        assert (await queue.get(pair[1].id)).crashes == 0, "it is not blamed"
        await queue.cancel(pair[1].id)
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded"


@async_test
async def test_an_operator_closes_the_door_and_cancels_anybodys_jobs(tmp_path: Path) -> None:
    metrics = RecordingMetrics()
    async with running(tmp_path, metrics=metrics) as queue:
        jobs = [await submit_job(queue, SLOW, owner=owner) for owner in ("a", "b", "b")]
        queue.set_open(False)
        assert not queue.is_ready and refused(lambda: queue.check_capacity("a")).code == "draining"
        await queue.cancel_any(jobs[1].id)
        assert [(await queue.get(job.id)).status for job in jobs][1] == "canceled" and queue.counts()["canceled"] == 1
        await queue.cancel_any(None)
        assert queue.counts() | {"canceled": 3, "queued": 0, "running": 0} == queue.counts()
        queue.set_open(True)
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded"
    assert metrics.total("cancelled") == {"operator": 3}


def test_the_steps_of_the_enlarging_have_a_price() -> None:
    spec = JobSpec("generate", "m", {"steps": 10, "upscale_steps": 30}, None, None, (1000, 1000))
    assert price(spec) == 40
    assert price(replace(spec, options={"steps": 10})) == 10


@async_test
async def test_a_request_has_a_price_and_a_key_a_purse(tmp_path: Path) -> None:
    bounds = Bounds(request_price=20, key_price=25, total_price=40)
    costs_10 = {"size": (1000, 1000), "options": {"steps": 10}}
    async with running(tmp_path, bounds=bounds) as queue:
        jobs = [await submit_job(queue, SLOW, owner=owner, **costs_10) for owner in ("a", "a", "b")]
        refusals = {
            ("a", 1): (429, "rate_limit_exceeded", "jobs of this key that wait or run cost 20 megapixels x steps and"),
            ("c", 2): (429, "queue_full", "jobs of all keys that wait or run cost 30 megapixels x steps and this 20"),
            ("c", 3): (400, "invalid_value", "this costs 30 megapixels x steps, expected at most 20; ask for fewer"),
        }
        for (owner, count), (status, code, text) in refusals.items():
            options = {"steps": 10, "count": count}
            problem = await refused_later(submit_job(queue, SLOW, owner=owner, size=(1000, 1000), options=options))
            assert (problem.status, problem.code) == (status, code) and text in problem.message
            assert (problem.retry_after is None) == (status == 400)
        for job in jobs:
            await queue.cancel(job.id)
        assert (await submit_job(queue, QUICK, owner="a", **costs_10)).status == "queued"


@async_test
async def test_a_worker_that_stops_is_noticed_and_its_job_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path, heartbeat_seconds=2) as queue:
        job = await submit_job(queue, QUICK | {"stop": "once"})
        await until(lambda: runs(queue, job.id) == ["begin"] and not queue.is_ready)
        assert queue.state == "UNHEALTHY", "nobody is sent to a worker that does not answer"
        over = await queue.wait(job.id)
        assert (over.status, over.crashes) == ("succeeded", 1)
        await until(lambda: queue.is_ready)


@pytest.mark.parametrize(
    ("plan", "code", "text"),
    [
        (
            {"steps": 2, "hang": True},
            "job_timeout",
            "this took longer than 0.5 seconds, which is all that a job may take",
        ),
        ({"steps": 99, "seconds": 0.2, "eat": 50}, "out_of_memory", "GiB of memory, expected at most 0.20"),
    ],
)
@async_test
async def test_a_job_without_end_or_measure_is_ended_and_the_next_runs(
    tmp_path: Path, plan: dict[str, Any], code: str, text: str
) -> None:
    bounds = Bounds(job_seconds=0.5 if "hang" in plan else 60)
    async with running(tmp_path, worker_memory=0.2, bounds=bounds) as queue:
        bad, good = await submit_job(queue, plan), await submit_job(queue, QUICK)
        over = await queue.wait(bad.id)
        assert (over.status, over.attempts) == ("failed", 1) and over.problem is not None
        assert over.problem.code == code and text in over.problem.message
        assert (await queue.wait(good.id)).status == "succeeded"


@async_test
async def test_a_client_that_goes_while_its_job_is_written_down_leaves_none(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        for attached in (True, False):
            id = new_job_folder(queue)
            task = asyncio.create_task(queue.submit(make_job_spec(SLOW), id=id, attached=attached))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: queue._lifecycle.queue.active_jobs or not queue._lifecycle._tasks)
            if attached:
                assert (await queue.wait(id)).status == "canceled"
            else:
                assert not (await queue.get(id)).is_finished
                await queue.cancel(id)


@async_test
async def test_a_thousand_jobs_leave_nothing_in_memory(tmp_path: Path) -> None:
    async with running(tmp_path, queue=64) as queue:
        blocker = await submit_job(queue, SLOW)

        async def one() -> None:
            job = await submit_job(queue)
            waiting = asyncio.create_task(queue.wait(job.id))
            watching = asyncio.create_task(seen(queue, job.id))
            await queue.cancel(job.id)
            assert (await waiting).status == "canceled" and (await watching)[-1].is_last

        for _ in range(20):
            await asyncio.gather(*(one() for _ in range(50)))
        lifecycle = queue._lifecycle
        assert (
            list(lifecycle.queue.active_jobs) == list(lifecycle.queue.running) == [blocker.id]
            and not lifecycle.queue.waiting
        )
        assert (
            len(lifecycle.event_logs) == MAX_FINISHED_LOGS + 1
            and not queue._admission.reservations.owners()
            and not queue._pool._pending_deletions
        )
        await queue.cancel(blocker.id)
        await until(lambda: not lifecycle._tasks and queue.state == "READY")
        assert len(asyncio.all_tasks()) == 5, (
            "this test, the sweeper, the watch of the folder, the worker and its watchdog"
        )
        assert queue.counts()["canceled"] == 1001


# room


@async_test
async def test_a_full_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, queue=2) as queue:
        jobs = [await submit_job(queue, SLOW) for _ in range(3)]
        problem = refused(lambda: queue.check_capacity(""))
        assert (problem.status, problem.code) == (
            429,
            "queue_full",
        ) and "2 jobs wait already" in problem.message
        assert problem.retry_after == pytest.approx(queue.expected_wait(), abs=1)
        id = new_job_folder(queue)
        assert (await refused_later(queue.submit(make_job_spec(), id=id))).code == "queue_full"
        assert not job_folder(data_of(queue), id).exists()
        await queue.cancel(jobs[1].id)
        queue.check_capacity("")
        for job in jobs:
            await queue.cancel(job.id)


@async_test
async def test_simultaneous_jobs_never_exceed_the_queue(tmp_path: Path) -> None:
    async with running(tmp_path, queue=4) as queue:
        first = await submit_job(queue, SLOW)
        found = await asyncio.gather(*(submit_job(queue, QUICK) for _ in range(50)), return_exceptions=True)
        taken = [one for one in found if isinstance(one, Job)]
        assert len(taken) == 4 and all(isinstance(one, ProblemError) for one in found if one not in taken)
        await queue.cancel(first.id)
        assert [(await queue.wait(job.id)).status for job in taken] == ["succeeded"] * 4
        assert len(list((data_of(queue) / "jobs").iterdir())) == 5


@async_test
async def test_a_reservation_is_a_place_until_it_is_used(tmp_path: Path) -> None:
    async with running(tmp_path, queue=2) as queue:
        first = await submit_job(queue, SLOW)
        kept, given_up = queue.reserve(""), queue.reserve("")
        assert refused(lambda: queue.reserve("")).code == "queue_full"
        assert given_up.release() and not given_up.release()
        late = queue.reserve("")
        assert refused(lambda: queue.reserve("")).code == "queue_full"
        taken = await queue.submit(make_job_spec(QUICK), id=new_job_folder(queue), reservation=kept)
        assert refused(lambda: queue.reserve("")).code == "queue_full"
        assert late.release()
        queue.check_capacity("")
        await queue.cancel(first.id)
        assert (await queue.wait(taken.id)).status == "succeeded"


@async_test
async def test_claims_of_a_key_count_among_its_jobs(tmp_path: Path) -> None:
    async with running(tmp_path, bounds=Bounds(per_key=1)) as queue:
        place = queue.reserve("a")
        assert refused(lambda: queue.reserve("a")).code == "rate_limit_exceeded"
        queue.reserve("b")
        place.release()
        queue.reserve("a")


@async_test
async def test_owners_take_turns(tmp_path: Path) -> None:
    async with running(tmp_path, queue=64) as queue:
        begun = [await submit_job(queue, {"steps": 20, "seconds": 0.02}, owner="a")]
        greedy = [await submit_job(queue, QUICK, owner="a") for _ in range(3)]
        modest = [await submit_job(queue, QUICK, owner="b") for _ in range(2)]
        jobs = [*begun, modest[0], greedy[0], modest[1], *greedy[1:]]
        ended = [await queue.wait(job.id) for job in jobs]
        assert [job.id for job in sorted(ended, key=lambda job: job.started or 0)] == [job.id for job in jobs]


@async_test
async def test_the_last_request_for_a_model_counts_and_jobs_go_first(tmp_path: Path) -> None:
    async with running(tmp_path, "--load", "0.05") as queue:
        first = await submit_job(queue, {"steps": 10, "seconds": 0.02})
        for _ in range(60):
            await queue.load_model("sd")
            await queue.unload_model("sd")
        second = await submit_job(queue, QUICK)
        await queue.load_model("bundled")
        await queue.wait(first.id)
        assert (await queue.wait(second.id)).status == "succeeded"
        await until(lambda: [model.loaded for model in queue.models()] == [None, 1000])
        assert (tmp_path / "commands").read_text().splitlines() == ["unload sd", "load bundled"]


@async_test
async def test_a_key_has_only_so_many_jobs_at_a_time(tmp_path: Path) -> None:
    async with running(tmp_path, bounds=Bounds(per_key=2)) as queue:
        jobs = [await submit_job(queue, SLOW, owner="a") for _ in range(2)]
        problem = refused(lambda: queue.check_capacity("a"))
        assert (problem.status, problem.code) == (
            429,
            "rate_limit_exceeded",
        ) and problem.retry_after is not None
        queue.check_capacity("b")
        queue.check_capacity("")
        for job in jobs:
            await queue.cancel(job.id)
        queue.check_capacity("a")


@async_test
async def test_nobody_is_admitted_to_wait_longer_than_wanted(tmp_path: Path) -> None:
    async with running(tmp_path, wait_seconds=8) as queue:
        jobs = [await submit_job(queue, SLOW)]
        queue.check_capacity("")
        assert refused(lambda: queue.check_capacity("", 3)).code == "queue_full"
        jobs.append(await submit_job(queue, SLOW))
        problem = refused(lambda: queue.check_capacity("", 9999))
        assert "may wait 8 s" in problem.message and 0 < (problem.retry_after or 0) < 2.1
        for job in jobs:
            await queue.cancel(job.id)


@async_test
async def test_the_same_key_gives_the_same_job(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        idempotency = Idempotency("k", "request")
        first, second = await asyncio.gather(
            *(submit_job(queue, QUICK, owner="a", idempotency=idempotency) for _ in range(2))
        )
        assert first.id == second.id
        over = await queue.wait(first.id)
        assert (
            await submit_job(queue, QUICK, owner="a", idempotency=idempotency)
            == over
            == await queue.find_repeated("a", idempotency)
        )
        with pytest.raises(ProblemError, match="was used for another request; use a new key for each"):
            await submit_job(queue, QUICK, owner="a", idempotency=Idempotency("k", "another"))
        assert (await submit_job(queue, QUICK, owner="b", idempotency=idempotency)).id != first.id
        await until(lambda: len(list((data_of(queue) / "jobs").iterdir())) == 2)


# models


@async_test
async def test_models_are_found_by_name_alias_and_task(tmp_path: Path) -> None:
    broken = ModelSettings(name="broken", path="missing")
    models = (ModelSettings(name="sd", path="tiny", aliases=("dall-e-2",)), broken)
    queue = queue_of(tmp_path, "--slow", "0.3", models=models)
    await queue.start()
    assert [(model.name, model.kind) for model in queue.models()] == [("sd", None), ("broken", None), ("bundled", None)]
    assert refused(lambda: queue.model_for("generate", "sd")).code == "model_loading"
    assert refused(lambda: queue.model_for("generate", "other")).code == "model_not_found"
    await until(lambda: queue.is_ready)
    assert queue.model_for("generate", None).name == queue.model_for("refine", "dall-e-2").name == "sd"
    assert queue.model_for("upscale", None).name == "bundled"
    problem = refused(lambda: queue.model_for("generate", "x"))
    assert (problem.status, problem.message) == (404, "there is no model 'x'; there are sd, broken, bundled")
    problem = refused(lambda: queue.model_for("generate", "bundled"))
    assert (problem.status, problem.code) == (400, "unsupported") and "those that can: sd" in problem.message
    problem = refused(lambda: queue.model_for("depth", "bundled"))
    assert problem.message.endswith(" cannot depth; nor can another here; serve --model NAME=PATH adds one")
    assert refused(lambda: queue.model_for("generate", "broken")).code == "model_unusable"
    await queue.load_model("dall-e-2")
    await until(lambda: queue.model_for("generate", "sd").loaded == 1000)
    await queue.unload_model("sd")
    await until(lambda: queue.model_for("generate", "sd").loaded is None)
    assert (await refused_later(queue.load_model("x"))).status == 404
    await queue.drain()


# from one process to the next


async def left(tmp_path: Path, *jobs: Job, done: bool = False) -> None:
    """A database as a service that was killed leaves it."""
    (tmp_path / "jobs").mkdir(parents=True, exist_ok=True)
    database = JobDatabase.open(tmp_path / "queue.sqlite3")
    for job in jobs:
        database.add(job)
        job_folder(tmp_path, job.id).mkdir()
        if done:
            content = {"images": [{"file": "result-0.png", "width": 1, "height": 1}], "model": "sd"}
            (job_folder(tmp_path, job.id) / "done.json").write_text(json.dumps(content))
    database.close()


def old(status="running", **values) -> Job:
    return Job(**{"id": new_job_id(), "spec": make_job_spec(QUICK), "status": status, "created": time.time()} | values)


@async_test
async def test_what_an_earlier_service_left_is_taken_up(tmp_path: Path) -> None:
    complete, attached_complete = old(attempts=1), old(attempts=1, attached=True)
    lost, worn = old(attempts=3, crashes=1, started=5.0), old(attempts=MAX_ATTEMPTS)
    waiting, gone = old("queued"), old("queued")
    attached = [old(attempts=1, attached=True), old("queued", attached=True)]
    await left(tmp_path, complete, attached_complete, done=True)
    await left(tmp_path, lost, worn, waiting, *attached, gone)
    job_folder(tmp_path, gone.id).rmdir()
    async with running(tmp_path) as queue:
        for job in (complete, attached_complete):
            over = await queue.wait(job.id)
            assert (over.status, runs(queue, job.id)) == ("succeeded", [])
        over = await queue.wait(lost.id)
        assert (over.status, over.attempts, over.crashes) == ("succeeded", 4, 1)
        assert (await queue.wait(waiting.id)).status == "succeeded"
        assert (over.started or 0) < ((await queue.get(waiting.id)).started or 0)
        assert "ended 10 times" in (await queue.wait(worn.id)).problem.message
        assert "files of this job are gone" in (await queue.wait(gone.id)).problem.message
        assert [(await queue.wait(job.id)).problem.code for job in attached] == ["canceled"] * 2
        assert queue.counts() == {"queued": 0, "running": 0, "succeeded": 4, "failed": 2, "canceled": 2}


@async_test
async def test_a_job_that_ended_in_an_earlier_process_answers_with_its_last_event(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        job = await submit_job(queue, QUICK)
        await queue.wait(job.id)
    async with running(tmp_path) as queue:
        (event,) = await seen(queue, job.id, 7)
        assert (event.number, event.kind, event.data["progress"]) == (8, "succeeded", 1.0)
        assert queue.counts()["succeeded"] == 1


@async_test
async def test_uploads_and_folders_of_nobody_are_deleted_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    claim_folder(tmp_path)
    ours = ("jobs/aaaaaaaaaaaaaaaaaaaaaa/image.png", "jobs/bbbbbbbbbbbbbbbbbbbbbb/image.png")
    for name in (
        "spool/aaaaaaaaaaaaaaaaaaaaaa-image",
        "spool/mail.txt",
        "jobs/notes.txt",
        "jobs/mine/thesis.txt",
        *ours,
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "jobs" / ("c" * 22)).symlink_to(tmp_path / "nowhere")
    (tmp_path / "jobs" / ("d" * 22)).symlink_to(tmp_path / "jobs/mine")
    for name in ("a" * 22, "mine", "notes.txt"):
        os.utime(tmp_path / "jobs" / name, (1, 1))
    with caplog.at_level("WARNING"):
        async with running(tmp_path):
            assert [path.name for path in (tmp_path / "spool").iterdir()] == ["mail.txt"]
            left = sorted(path.name for path in (tmp_path / "jobs").iterdir())
            assert left == ["b" * 22, "c" * 22, "d" * 22, "mine", "notes.txt"]
    assert (tmp_path / "jobs/mine/thesis.txt").exists()
    assert "what is not the service's and is left there: 'cccccccccccccccccccccc', 'dddd" in caplog.text


@async_test
async def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("jobs/mine/thesis.txt", "spool/mail.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("years of work")
    for data in (tmp_path, tmp_path / "jobs/mine"):
        with pytest.raises(InputError, match=r"holds files of something else .*, expected an empty folder"):
            await queue_of(data).start()
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["jobs/mine/thesis.txt", "spool/mail.txt"]


@async_test
async def test_a_row_that_cannot_be_read_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = old("queued"), [old("queued") for _ in range(4)]
    await left(tmp_path, good, *bad)
    with sqlite3.connect(tmp_path / "queue.sqlite3") as connection:
        for job, change in zip(
            bad, ("spec = '{'", "created = 'then'", "status = x'ff'", "id = '../../etc'"), strict=True
        ):
            connection.execute(f"UPDATE jobs SET {change} WHERE id = ?", [job.id])
    connection.close()
    async with running(tmp_path) as queue:
        assert (await queue.wait(good.id)).status == "succeeded"
        assert [job.id for job in (await queue.list("")).jobs] == [good.id] and sum(queue.counts().values()) == 1
        assert all(job_folder(tmp_path, job.id).is_dir() for job in bad), "their files are left"
    assert caplog.text.count("a row cannot be read and is set aside: job") == 4


@async_test
async def test_a_folder_that_is_deleted_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_file, "FOLDER_CHECK_SECONDS", 0.05)
    async with running(tmp_path / "data") as queue:
        (tmp_path / "data").rename(tmp_path / "elsewhere")
        await until(lambda: not queue.is_ready)
        assert queue.state == "UNHEALTHY"
        (tmp_path / "data").mkdir()
        assert refused(lambda: queue.check_capacity("")).code == "storage_failed"
        assert "was deleted or replaced" in (await refused_later(give_in(queue))).message


@async_test
async def test_a_locked_database_is_said_at_once_and_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        job = await submit_job(queue, {"steps": 20, "seconds": 0.01})
        await until(lambda: queue.progress(job).step)
        other = sqlite3.connect(tmp_path / "queue.sqlite3", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        problems = await asyncio.gather(*(refused_later(give_in(queue)) for _ in range(3)))
        assert {(one.status, one.code, one.retry_after) for one in problems} == {(503, "storage_busy", 2)}
        await until(lambda: queue.counts()["running"] == 0)
        other.execute("ROLLBACK")
        other.close()
        assert (await queue.wait(job.id)).status == "succeeded"


@async_test
async def test_only_one_service_uses_a_folder(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        other = queue_of(tmp_path)
        with pytest.raises(InputError, match=f"in use by another service \\(process {os.getpid()}\\)"):
            await other.start()
        await other.drain()
        assert queue.is_ready
    again = queue_of(tmp_path)
    await again.start()
    await again.drain()


@async_test
async def test_workers_of_an_earlier_service_are_waited_for(tmp_path: Path) -> None:
    held = await lock.acquire(tmp_path)
    worker = os.dup(held.workers_fd)
    held.release()
    with pytest.raises(InputError, match="worker processes of an earlier service still use it"):
        await lock.acquire(tmp_path, 0.1)
    asyncio.get_running_loop().call_later(0.1, os.close, worker)
    (await lock.acquire(tmp_path)).release()


@async_test
async def test_a_folder_that_cannot_be_used_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot hold the service's files"):
        await queue_of(tmp_path / "file" / "data").start()
    (tmp_path / "queue.sqlite3").write_bytes(b"x" * 5000)
    for _ in range(2):
        with pytest.raises(InputError, match="move it aside"):
            await queue_of(tmp_path).start()


# the end


@async_test
async def test_a_service_that_stops_ends_what_runs_and_keeps_what_waits(tmp_path: Path) -> None:
    metrics = RecordingMetrics()
    queue = queue_of(tmp_path, metrics=metrics)
    await queue.start()
    await until(lambda: queue.is_ready)
    runs_ = await submit_job(queue, {"steps": 20, "seconds": 0.01}, attached=True)
    attached, kept = await submit_job(queue, QUICK, attached=True), await submit_job(queue, QUICK)
    waiting = [asyncio.create_task(queue.wait(job.id)) for job in (runs_, attached, kept)]
    watching = asyncio.create_task(seen(queue, kept.id))
    await asyncio.sleep(0.02)
    stopping = asyncio.create_task(queue.drain())
    await asyncio.sleep(0)
    assert not queue.is_ready and refused(lambda: queue.check_capacity("")).code == "draining"
    assert (await refused_later(give_in(queue))).code == "draining"
    await stopping
    await queue.drain()
    assert (await waiting[0]).status == "succeeded"
    seen_events = (await waiting[1]).problem
    assert seen_events is not None and (seen_events.status, seen_events.code, seen_events.retry_after is None) == (
        503,
        "draining",
        False,
    )
    with pytest.raises(ProblemError, match="the service is stopping"):
        await waiting[2]
    assert not (await watching)[-1].is_last and metrics.total("cancelled") == {"draining": 1}
    async with running(tmp_path) as queue:
        assert (await queue.wait(kept.id)).status == "succeeded" and runs(queue, kept.id) == ["begin", "end"]


async def give_in(queue: JobManager) -> None:
    await queue.submit(make_job_spec(), id=new_job_folder(queue))


@async_test
async def test_what_runs_too_long_is_left_to_the_next_service(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, drain_seconds=0.05, devices=("cpu", "cpu"))
    await queue.start()
    await until(lambda: [worker.state for worker in queue._pool.workers] == ["idle", "idle"])
    detached, attached = (
        await submit_job(queue, {"steps": 60, "seconds": 0.01}),
        await submit_job(queue, SLOW, attached=True),
    )
    await until(lambda: queue.progress(detached).step and queue.progress(attached).step)
    await queue.drain()
    assert all(worker.state == "down" for worker in queue._pool.workers)
    async with running(tmp_path) as queue:
        assert (await queue.get(attached.id)).problem.code == "draining"
        over = await queue.wait(detached.id)
        assert (over.status, over.attempts, over.crashes) == ("succeeded", 2, 0)


@async_test
async def test_a_queue_that_never_started_can_be_stopped(tmp_path: Path) -> None:
    queue = queue_of(tmp_path)
    assert queue.state == "STARTING" and queue.expected_wait() == 0
    await queue.drain()


# old results, full disks


@async_test
async def test_old_results_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, job_minutes=0.001) as queue:
        job, slow = await submit_job(queue, QUICK), await submit_job(queue, SLOW)
        await queue.wait(job.id)
        await asyncio.sleep(0.07)
        await queue.delete_expired()
        assert await queue.get(job.id) is None and not job_folder(tmp_path, job.id).exists()
        assert (await queue.get(slow.id)).status == "running" and queue.counts()["succeeded"] == 0
        await queue.delete(slow.id)
        assert await queue.get(slow.id) is None
        await until(lambda: not queue._pool._pending_deletions and queue.state == "READY")
        await until(lambda: list((tmp_path / "jobs").iterdir()) == [])
        assert len(queue._lifecycle.event_logs) == 0


@async_test
async def test_the_oldest_results_go_where_the_disk_is_over_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_usage, "FIXED_BYTES", 0)
    async with running(tmp_path, disk=1_500_000 / (1 << 30)) as queue:
        jobs = [await submit_job(queue, QUICK) for _ in range(4)]
        for job in jobs:
            await queue.wait(job.id)
            (job_folder(tmp_path, job.id) / "result-0.png").write_bytes(b"x" * 500_000)
        await queue.delete_expired()
        assert len((await queue.list("")).jobs) == 4, "what was just made is safe"
        problem = await refused_later(give_in(queue))
        assert (problem.code, problem.retry_after) == ("queue_full", 60) and "ask again later" in problem.message
        monkeypatch.setattr(retention, "MIN_RETENTION_SECONDS", -1)
        await queue.delete_expired()
        assert [job.id for job in (await queue.list("")).jobs] == [jobs[3].id, jobs[2].id]
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded"
        large = await refused_later(submit_job(queue, QUICK, size=(1000, 1000)))
        assert large.code == "image_too_large" and "of which the service may have" in large.message


@async_test
async def test_texts_and_the_database_count_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MIN_RETENTION_SECONDS", -1)
    most = 1 << 20
    async with running(tmp_path, disk=most / (1 << 30)) as queue:
        for _ in range(20):
            options = {"prompt": "\U0001f600" * 12_000, "seed": 0, "fake": QUICK}
            await queue.wait((await submit_job(queue, options=options)).id)
            await queue.delete_expired()
            assert sum(path.lstat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= most
        assert 1 <= len((await queue.list("")).jobs) < 20


@async_test
async def test_a_full_disk_refuses_jobs_and_the_service_lives(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        job = await submit_job(queue, QUICK)
        await queue.wait(job.id)
        do = queue._lifecycle.store.run
        await do(lambda database: database.connection.execute("PRAGMA query_only = ON"))
        assert (await refused_later(give_in(queue))).code == "storage_failed"
        assert (queue.state, queue.is_ready) == ("UNHEALTHY", False) and (await queue.get(job.id)).status == "succeeded"
        await do(lambda database: database.connection.execute("PRAGMA query_only = OFF"))
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded" and queue.is_ready


@async_test
async def test_an_end_that_cannot_be_written_down_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enlarger.service.jobs.lifecycle.RETRY_DELAYS", (0.01, 0.01))
    async with running(tmp_path) as queue:
        job = await submit_job(queue, {"steps": 20, "seconds": 0.01})
        await until(lambda: queue.progress(job).step)
        do = queue._lifecycle.store.run
        await do(lambda database: database.connection.execute("PRAGMA query_only = ON"))
        over = await queue.wait(job.id)
        assert (over.status, over.problem.code) == ("failed", "storage_failed") and await queue.get(job.id) == over
        await do(lambda database: database.connection.execute("PRAGMA query_only = OFF"))
        await queue.delete_expired()
        assert await do(JobDatabase.get, job.id) == over


@async_test
async def test_jobs_wait_while_the_disk_takes_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enlarger.service.workers.pool.RETRY_SECONDS", 0.02)
    async with running(tmp_path) as queue:
        begin, failures = JobDatabase.mark_running, [1, 1]

        def mark_running(self: JobDatabase, *args):
            if failures:
                failures.pop()
                raise sqlite3.OperationalError("disk I/O error")
            return begin(self, *args)

        monkeypatch.setattr(JobDatabase, "mark_running", mark_running)
        assert (await queue.wait((await submit_job(queue, QUICK)).id)).status == "succeeded" and not failures


# events and estimates by themselves


@async_test
async def test_a_board_keeps_the_newest_events_and_nothing_follows_the_last() -> None:
    board = EventLog()
    for i in range(MAX_EVENTS + 10):
        board.publish("progress", {"i": i})
    board.publish("succeeded", {})
    board.publish("progress", {})
    numbers = [event.number async for event in board.subscribe()]
    assert numbers == list(range(12, MAX_EVENTS + 12))
    boards = EventLogs()
    for i in range(MAX_FINISHED_LOGS + 5):
        boards.publish(str(i), "queued", {})
        boards.publish(str(i), "canceled", {})
    assert len(boards) == MAX_FINISHED_LOGS and boards.find("4") is None and boards.find("5") is not None
    boards.remove("5")
    boards.publish("new", "queued", {})
    assert len(boards) == MAX_FINISHED_LOGS


def test_costs_are_learned_by_size_and_lent_to_relatives() -> None:
    costs, small, large = (
        DurationStats(),
        make_job_spec(options={"steps": 10}, size=(1000, 750)),
        make_job_spec(options={"steps": 10, "count": 2}, size=(2000, 1500)),
    )
    assert costs.expected_seconds(small) == DEFAULT_SECONDS
    costs.record(small, 2.0)
    assert costs.expected_seconds(small) == pytest.approx(2.0)
    assert costs.expected_seconds(large) == pytest.approx(2.0 * 6.05 / 0.8), "each takes something beside its pixels"
    related = make_job_spec(options={"steps": 20}, size=(1000, 750))
    assert costs.expected_seconds(related) == pytest.approx(2.0), "the same task and model"
    for _ in range(20):
        costs.record(small, 4.0)
    assert costs.expected_seconds(small) == pytest.approx(4.0, rel=0.01)
    assert costs.expected_seconds(replace(small, size=None)) > costs.expected_seconds(small)


def test_a_tiny_job_says_little_of_large_ones() -> None:
    """Its second is not of its 256 pixels: a megapixel would be expected to take an hour, and be turned away."""
    costs = DurationStats()
    costs.record(make_job_spec(size=(16, 16)), 1.0)
    assert costs.expected_seconds(make_job_spec(size=(16, 16))) == pytest.approx(1.0)
    assert costs.expected_seconds(make_job_spec(size=(1000, 1000))) == pytest.approx(1.05 / 0.050256)


def test_the_kinds_of_jobs_that_are_remembered_are_bounded() -> None:
    costs = DurationStats()
    for steps in range(1000):
        costs.record(make_job_spec(options={"steps": steps}), 1.0)
        costs.record_passes(make_job_spec(options={"steps": steps}), [1.0])
    assert len(costs._seconds_per_megapixel) <= 256 and len(costs._pass_seconds) <= 256


def passes(pace: ProgressEstimator, plan: list[tuple[str, int, float]], now: float) -> float:
    """Run the passes of a plan: stage, steps, seconds of each."""
    for stage, steps, seconds in plan:
        for i in range(steps):
            now += seconds
            pace.update(stage, i + 1, steps, now)
    return now


def test_progress_follows_the_time_that_passes_take_and_never_goes_back() -> None:
    plan = [("predict", 4, 0.25), ("denoise", 8, 1.0)]
    costs, what = DurationStats(), make_job_spec(task="upscale", options={"detail": 1.0})
    first = ProgressEstimator(what, costs, 100.0)
    now = passes(first, plan[:1], 100.0)
    assert first.progress == pytest.approx(0.5), "half of the passes"
    now = passes(first, plan[1:], now)
    assert first.progress == 0.99
    first.finish(now + 1.0)
    second = ProgressEstimator(what, costs, 200.0)
    assert second.eta_seconds(200.0) == pytest.approx(10.0)
    huge = ProgressEstimator(replace(what, size=(6000, 4000)), costs, 200.0)
    assert huge.eta_seconds(200.0) is None, "a small picture's pace says nothing of a large one's"
    other = ProgressEstimator(replace(what, model="other"), costs, 200.0)
    assert other.eta_seconds(200.0) is None, "another model's pace says nothing"
    other.update("predict", 1, 4, 230.0)
    assert other.eta_seconds(230.0) == pytest.approx(210.0), "its own does"
    now = passes(second, plan[:1], 200.0)
    assert second.progress == pytest.approx(0.1)
    seen = []
    for i in range(8):
        now += 1.0
        second.update("denoise", i + 1, 8, now)
        seen.append((second.progress, second.remaining_seconds(now)))
    assert [best for best, _ in seen] == pytest.approx([0.2 + 0.1 * i for i in range(8)])
    assert [left for _, left in seen] == pytest.approx([8.0 - i for i in range(8)])


def test_several_pictures_of_a_job_are_several_passes() -> None:
    costs, what = DurationStats(), make_job_spec(task="upscale", options={"detail": 1.0, "count": 2})
    for run in range(2):
        pace, now, seen = ProgressEstimator(what, costs, 100.0), 100.0, []
        for network_call in range(2):
            for stage, steps, seconds in (("predict", 4, 0.5), ("denoise", 8, 1.0)):
                for i in range(steps):
                    now += seconds
                    pace.update(stage, network_call * steps + i + 1, 2 * steps, now)
                    seen.append(pace.progress)
        pace.finish(now)
        assert seen == sorted(seen) and len(pace.finished_pass_seconds) == 3
        if run == 1:
            assert [seen[3], seen[11], seen[15]] == pytest.approx([0.1, 0.5, 0.6])


@async_test
async def test_loading_does_not_count(tmp_path: Path) -> None:
    async with running(tmp_path, "--load", "0.3") as queue:
        job = await submit_job(queue, QUICK)
        await queue.wait(job.id)
        assert [event.kind for event in await seen(queue, job.id) if event.data["stage"] == "loading"] == ["progress"]
        assert queue._lifecycle.queue.durations.expected_seconds(job.spec) < 0.2


def test_what_came_before_the_first_step_does_not_count() -> None:
    costs = DurationStats()
    pace = ProgressEstimator(make_job_spec(), costs, 0.0, batch_size=2)
    pace.start(50.0)
    now = passes(pace, [("denoise", 5, 1.0)], 50.0)
    pace.start(54.0)
    pace.finish(now)
    assert costs.expected_seconds(make_job_spec()) == pytest.approx(2.5), "half of a batch of two"


def test_the_settings_of_the_tests_are_valid(tmp_path: Path) -> None:
    assert settings(tmp_path).known_models[-1].name == "bundled"


@async_test
async def test_one_feed_tells_of_all_jobs_and_a_slow_reader_holds_the_newest_alone() -> None:
    logs = EventLogs()
    logs.publish("a", "queued", {})
    with logs.feed() as feed:
        for step in range(MAX_EVENTS):
            logs.publish("a", "progress", {"step": step})
            logs.publish("b", "progress", {"step": -step})
        logs.publish("a", "succeeded", {})
        logs.publish("a", "progress", {"step": 0})
        logs.close()
        seen_events = [(id, event.kind, event.data.get("step")) async for id, event in feed.events()]
    last = MAX_EVENTS - 1
    assert seen_events == [("a", "progress", last), ("b", "progress", -last), ("a", "succeeded", None)]
    logs.publish("b", "progress", {})
    assert [item async for item in feed.events()] == []
