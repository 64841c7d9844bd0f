"""What one key may cost another, and what is refused before the work."""

import asyncio
import base64
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from enlarger.cli.serve import bundled_bounds, with_room
from enlarger.errors import InputError
from enlarger.service.jobs import retention
from enlarger.service.jobs.admission import price
from enlarger.service.jobs.job import Idempotency, Job
from enlarger.service.jobs.job_queue import ActiveJob, JobQueue
from enlarger.service.jobs.known_requests import MAX_CANCELED
from enlarger.service.jobs.manager import JobManager
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.jobs.progress_estimator import DEFAULT_SECONDS, DurationStats
from enlarger.service.middleware.asgi import RequestHead
from enlarger.service.middleware.trusted_host import make_host_check
from enlarger.service.problems import ProblemError, wait_timeout
from enlarger.service.routes.parsed_request import build_job_spec, parse_generation, parse_upscale
from enlarger.service.routes.request_body import RequestBody
from enlarger.service.routes.request_headers import request_fingerprint
from enlarger.service.routes.request_models import Generation, UpscaleForm
from enlarger.service.routes.responses import names_etag
from enlarger.service.settings import Bounds, ModelSettings, Settings, load_settings
from enlarger.service.uploads.data_url import write_data_url
from tests.support.queues import async_test, data_of, make_job_spec, queue_of, running, submit_job, until

SLOW = {"steps": 2000, "seconds": 0.005}
SD = ModelState("sd", "sd", ("generate",), (), default_size=(512, 512), default_steps={"generate": 50})


def refused(call: Callable[[], object]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value


@async_test
async def test_a_refused_job_costs_nobody_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MIN_RETENTION_SECONDS", -1)
    async with running(tmp_path, disk=0.01) as queue:
        done = [await submit_job(queue, {"steps": 1}, owner=owner) for owner in ("a", "b", "b")]
        for job in done:
            await queue.wait(job.id)
        running_job = await submit_job(queue, SLOW, owner="a", size=(850, 1000))
        for size, code in (((850, 1000), "queue_full"), ((8000, 8000), "image_too_large")):
            with pytest.raises(ProblemError, match="of the disk") as caught:
                await submit_job(queue, {"steps": 1}, owner="a", size=size)
            assert caught.value.problem.code == code
            assert [await queue.get(job.id) is not None for job in done] == [True] * 3
        await queue.cancel(running_job.id)


@async_test
async def test_an_owners_own_results_make_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MIN_RETENTION_SECONDS", -1)
    async with running(tmp_path, disk=0.01) as queue:
        done = [await submit_job(queue, {"steps": 1}, owner=owner) for owner in ("b", "a")]
        for job in done:
            await queue.wait(job.id)
        room = queue._lifecycle.disk
        room.by_job = {job.id: 1_000_000 for job in done}
        room.other_bytes = int(room.max_bytes) - 2_000_000
        await submit_job(queue, {"steps": 1}, owner="a")
        assert [await queue.get(job.id) is None for job in done] == [False, True]


def test_each_owners_wait_is_that_of_its_turn() -> None:
    queue = JobQueue(DurationStats())
    for i, owner in enumerate(("a", "a", "a", "b")):
        queue.add(ActiveJob(job_of(owner, i)))
    assert queue.expected_wait("a", 1) == 4 * DEFAULT_SECONDS
    assert queue.expected_wait("b", 1) == 3 * DEFAULT_SECONDS
    assert queue.expected_wait("c", 1) == 2 * DEFAULT_SECONDS
    for owner in ("a", "b", "c"):
        expected = queue.expected_wait(owner, 1)
        active = ActiveJob(job_of(owner, 9))
        queue.add(active)
        assert queue.expected_waits(1)[active.job.id] == expected
        queue.remove(active)


def job_of(owner: str, number: int) -> Job:
    return Job(f"{owner}{number}".ljust(22, "x"), make_job_spec(), "queued", 0.0, owner)


@async_test
async def test_waiting_jobs_count_for_the_disk_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        await submit_job(queue, SLOW)
        waiting = await submit_job(queue, SLOW, size=(1000, 1000))
        before = queue._lifecycle.disk.by_job[waiting.id]
    again = queue_of(tmp_path, "--start-seconds", "9")
    await again.start()
    try:
        assert again._lifecycle.disk.by_job[waiting.id] == before > 8_000_000
    finally:
        await again.drain()


@async_test
async def test_a_folder_with_the_queue_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "queue.sqlite3") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    (tmp_path / "spool" / ("a" * 22)).mkdir(parents=True)
    before = sorted(path.name for path in tmp_path.rglob("*") if "lock" not in path.name)
    with pytest.raises(InputError, match="is a database of another program; move it aside"):
        await queue_of(tmp_path).start()
    assert sorted(path.name for path in tmp_path.rglob("*") if "lock" not in path.name) == before


@async_test
async def test_what_an_operator_or_a_key_cannot_name_changes_nothing(tmp_path: Path) -> None:
    kept = ModelSettings(name="sd", path="tiny", keep=True)
    async with running(tmp_path, models=(kept,)) as queue:
        job = await submit_job(queue, SLOW)
        await until(lambda: queue.state == "BUSY")
        assert not await queue.cancel_any("nobody") and queue.counts()["canceled"] == 0
        with pytest.raises(ProblemError, match="sd is kept loaded by the service's settings; leave keep out"):
            await queue.unload_model("sd")
        queue.set_open(False)
        assert refused(lambda: queue.reserve("")).problem.message.startswith("an operator lets no more jobs in")
        assert await queue.cancel_any(job.id)


@async_test
async def test_a_repeated_request_is_known_by_its_key(tmp_path: Path) -> None:
    async with running(tmp_path) as queue:
        await submit_job(queue, {"steps": 1}, owner="a", idempotency=Idempotency("k", "f"))
        assert await queue.is_known("a", "k")
        assert not await queue.is_known("b", "k") and not await queue.is_known("a", "other")
    assert data_of(queue) == tmp_path


@async_test
async def test_a_request_is_canceled_by_its_key_before_and_after_it_has_a_job(tmp_path: Path) -> None:
    known = Idempotency("k", "a request")
    async with running(tmp_path) as queue:
        assert await queue.cancel_request("a", "k") is None
        with pytest.raises(ProblemError, match="was canceled"):
            await submit_job(queue, SLOW, owner="a", idempotency=known)
        job = await submit_job(queue, SLOW, owner="b", idempotency=known)
        canceled = await queue.cancel_request("b", "k")
        assert canceled is not None and (canceled.id, canceled.status) == (job.id, "canceled")
        assert (await submit_job(queue, SLOW, owner="b", idempotency=known)).status == "canceled"
        for i in range(4):  # whichever is first
            both = submit_job(queue, SLOW, owner="c", idempotency=Idempotency(f"{i}", "f")), give_up(queue, f"{i}", i)
            await asyncio.gather(*both, return_exceptions=True)
        await until(lambda: not queue._lifecycle.queue.active_jobs)
        for i in range(MAX_CANCELED):
            await queue.cancel_request("a", f"other {i}")
        assert len(queue._requests._canceled["a"]) == MAX_CANCELED and not queue._requests.is_canceled("a", "k")


async def give_up(queue: JobManager, key: str, turns: int) -> None:
    """Cancel a request after some turns of the loop."""
    for _ in range(turns * 3):
        await asyncio.sleep(0)
    await queue.cancel_request("c", key)


def test_generated_pictures_are_bounded_without_a_size_too() -> None:
    bounds = Bounds()
    plain = build_job_spec(parse_generation(Generation(prompt="a"), bounds, None), SD, bounds)
    assert plain.size == (512, 512) and price(plain) == pytest.approx(0.262144 * 50)
    large = parse_generation(Generation(prompt="a", upscale=16, n=10), bounds, None)
    with pytest.raises(ProblemError, match="the result would have 10 times 8192x8192 pixels"):
        build_job_spec(large, SD, bounds)
    wide = parse_generation(Generation(prompt="a", upscale=16, output_format="webp"), Bounds(output_pixels=10**9), None)
    xl = replace(SD, default_size=(1024, 1024))
    with pytest.raises(ProblemError, match="16,383"):
        build_job_spec(wide, xl, Bounds(output_pixels=10**9))


def test_steps_that_are_not_said_cost_what_the_model_takes() -> None:
    bounds, x4 = Bounds(), ModelState("x4", "x4", ("upscale",), (), default_steps={"upscale": 75})
    silent = build_job_spec(parse_upscale(UpscaleForm(scale=4.0), bounds), x4, bounds, (1000, 1000))
    aloud = build_job_spec(
        parse_upscale(UpscaleForm(scale=4.0, num_inference_steps=75), bounds), x4, bounds, (1000, 1000)
    )
    assert price(silent) == price(aloud) == 16 * 75


@pytest.mark.parametrize("text", ["x:nan", "x:1e999", "x:-11", "x:"])
def test_scales_of_loras_are_numbers_that_mean_something(text: str) -> None:
    problem = refused(lambda: parse_generation(Generation(prompt="a", loras=text), Bounds(), None)).problem
    assert problem.message.endswith("expected name:0.8, with a scale between -10 and 10") and problem.param == "loras"
    many = ",".join(f"n{i}" for i in range(17))
    problem = refused(lambda: parse_generation(Generation(prompt="a", loras=many), Bounds(), None)).problem
    assert problem.message == "loras has 17 names, expected at most 16"


def test_variables_that_are_no_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, nearest in (("ENLARGER_QUEUES", "ENLARGER_QUEUE"), ("ENLARGER_JOB_MINUTE", "ENLARGER_JOB_MINUTES")):
        with monkeypatch.context() as patch:
            patch.setenv(name, "5")
            with pytest.raises(InputError, match=f"{name} is set, but there is no such setting; .* perhaps {nearest};"):
                load_settings()
    monkeypatch.setenv("ENLARGER_KEY", "not a setting, and known")
    monkeypatch.setenv("ENLARGER_BOUNDS__STEPS", "7")
    assert load_settings().bounds.steps == 7
    with pytest.raises(InputError, match=r"devices: .*at least 1 item"):
        load_settings(devices=())


@pytest.mark.parametrize(("address", "host"), [("::ffff:10.0.0.2", "10.0.0.2:8997"), ("fd00::1", "[fd00::1]:8997")])
def test_a_service_on_all_addresses_knows_them_in_both_kinds(tmp_path: Path, address: str, host: str) -> None:
    check = make_host_check(Settings(data=tmp_path, host="::", insecure_no_auth=True))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())]}
    check(RequestHead.from_scope({**scope, "server": (address, 8997)}))
    with pytest.raises(ProblemError, match="is no name of this service"):
        check(RequestHead.from_scope({**scope, "server": ("::ffff:10.0.0.3", 8997)}))


@pytest.mark.parametrize(
    ("header", "expected"), [('"a"', True), ('W/"a"', True), ('"b", W/"a"', True), ("*", True), ('"b"', False)]
)
def test_versions_are_compared_as_proxies_send_them(header: str, expected: bool) -> None:
    assert names_etag(header, '"a"') is expected and not names_etag(None, '"a"')


def test_base64_with_line_breaks_is_read(tmp_path: Path) -> None:
    data = bytes(range(256))
    text = base64.encodebytes(data).decode().replace("\n", "\r\n")
    write_data_url(f"data:image/png;base64,{text}", tmp_path / "out", 1000)
    assert (tmp_path / "out").read_bytes() == data


def test_what_would_time_out_again_is_not_to_be_repeated() -> None:
    assert wait_timeout(3600).headers() == {"X-Should-Retry": "false"}


def test_a_larger_picture_has_the_disk_and_the_price_that_it_needs(tmp_path: Path) -> None:
    settings = with_room(load_settings(data=tmp_path, bounds=bundled_bounds(500)))
    assert settings.disk >= 2 * 4 * 500e6 * 8 / 2**30 and settings.bounds.request_price == 2000
    bounds = settings.bounds
    assert bounds.image == 4 * 500_000_000 and bounds.image < bounds.body < bounds.bodies_per_key < bounds.bodies
    assert bounds.decode_seconds == 200 and bundled_bounds(50).keys() == {"bundled_pixels", "bundled_output_pixels"}
    assert settings.bounds.pixels == 500_000_000 and settings.bounds.total_price == Bounds().total_price
    assert with_room(load_settings(data=tmp_path, disk=1, bounds=bundled_bounds(500))).disk == 1
    assert with_room(load_settings(data=tmp_path, bounds=bundled_bounds(10))).disk == Settings(data=tmp_path).disk


def test_what_a_session_says_is_a_part_of_the_request() -> None:
    body = RequestBody({"prompt": "a"}, {}, is_form=False)
    plain, first, second = (request_fingerprint("/x", body, session) for session in (None, {"m": "a"}, {"m": "b"}))
    assert len({plain, first, second}) == 3 and first == request_fingerprint("/x", body, {"m": "a"})
