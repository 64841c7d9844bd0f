"""The routes over an in-memory queue: answers, refusals with their words, jobs, events, and what lies on disk after."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from enlarger.errors import InputError
from enlarger.service.jobs.job import Job, JobSpec, job_folder, new_job_id
from enlarger.service.middleware.api_keys import find_owner, hash_key
from enlarger.service.problems import Problem
from enlarger.service.routes.page import PAGE_FILES, without_comments
from enlarger.service.routes.sse import owner_events
from enlarger.service.settings import Bounds, load_settings
from tests.support.fake_service import FakeDecoder, FakeService, fake_service, serve_in_thread


def png(width: int = 20, height: int = 10, mode: str = "RGB", colour: Any = None) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height), colour or 0).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def fake(tmp_path: Path) -> FakeService:
    return fake_service(tmp_path)


@pytest.fixture
def client(fake: FakeService) -> Iterator[TestClient]:
    with TestClient(fake.app, raise_server_exceptions=True) as made:
        yield made


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, FakeService]]:
    """A service for requests that never become jobs."""
    fake = fake_service(tmp_path_factory.mktemp("still"))
    with TestClient(fake.app) as client:
        yield client, fake
    assert not fake.queue.known
    assert not fake.leftover_files


def upscale(client: TestClient, image: bytes | None = None, headers: Any = None, **fields: Any) -> httpx2.Response:
    data = {name: str(value) for name, value in fields.items()}
    files = {"image": ("photo.png", png() if image is None else image)}
    return client.post("/v1/images/upscale", files=files, data=data, headers=headers)


def generate(client: TestClient, headers: Any = None, **fields: Any) -> httpx2.Response:
    return client.post("/v1/images/generations", json={"prompt": "a cat", "size": "64x64"} | fields, headers=headers)


def picture_of(item: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))


def problem_in(answer: httpx2.Response, status: int, code: str, param: str | None, text: str) -> None:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (answer.status_code, body["error"]["code"], body["error"]["param"]) == (status, code, param)
    assert text in body["error"]["message"]


def only(fake: FakeService) -> Any:
    (job,) = fake.queue.known.values()
    return job


# What is asked for


def test_upscale_gives_pictures_of_exactly_the_size(client: TestClient, fake: FakeService) -> None:
    answer = upscale(client, png(21, 11), prompt="x", n=3, seed=0)
    body = answer.json()
    assert [picture_of(item).size for item in body["data"]] == [(42, 22)] * 3
    assert [item["seed"] for item in body["data"]] == body["enlarger"]["seeds"] == [0, 1, 2]
    assert body["size"] == "42x22"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert only(fake).spec.options["seed"] == 0
    assert only(fake).attached
    assert body["enlarger"]["warnings"] == ["a note of the worker"]
    assert body["usage"] == {
        "input_tokens": 6,
        "input_tokens_details": {"text_tokens": 5, "image_tokens": 1},
        "output_tokens": 18,
        "total_tokens": 24,
    }


def test_a_seed_is_drawn_and_told_if_none_is_given(client: TestClient, fake: FakeService) -> None:
    first, second = (upscale(client, prompt="").json()["enlarger"]["seed"] for _ in range(2))
    assert first != second
    assert {job.spec.options["seed"] for job in fake.queue.known.values()} == {first, second}


def test_size_fits_the_input_and_says_how(client: TestClient) -> None:
    body = upscale(client, png(20, 10), prompt="x", size="16x16").json()
    assert picture_of(body["data"][0]).size == (32, 32)
    assert any("stretched from 20x10 to 16x16" in said for said in body["enlarger"]["warnings"])


def test_an_address_gives_the_picture_and_the_download_a_name(client: TestClient) -> None:
    body = upscale(client, prompt="x", n=2, seed=5, response_format="url").json()
    first, second = (item["url"] for item in body["data"])
    assert first.startswith("http://testserver/v1/images/")
    shown, saved = client.get(first), client.get(second, params={"download": "1"})
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert shown.headers["content-disposition"].startswith("inline")
    assert shown.content != client.get(second).content
    assert saved.headers["content-disposition"].startswith("attachment")
    assert client.get(first, headers={"If-None-Match": shown.headers["etag"]}).status_code == 304
    identity = body["enlarger"]["id"]
    missing = client.get(f"/v1/images/{identity}/content?variant=7")
    problem_in(missing, 404, "job_not_found", "variant", "variant is 7, but job")
    problem_in(client.get(f"/v1/images/{new_job_id()}/content"), 404, "job_not_found", "id", "it has expired")
    problem_in(client.get("/v1/images/..%2f..%2fx/content"), 404, "not_found", None, "there is nothing")


def test_a_result_that_was_swept_has_expired(client: TestClient, fake: FakeService) -> None:
    url = upscale(client, prompt="x", response_format="url").json()["data"][0]["url"]
    for file in job_folder(fake.settings.data, only(fake).id).glob("result*"):
        file.unlink()
    problem_in(client.get(url), 404, "job_not_found", None, "have expired")


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_formats(client: TestClient, form: str) -> None:
    body = upscale(client, prompt="x", output_format=form).json()
    assert picture_of(body["data"][0]).format == form.upper()
    assert body["output_format"] == form


def test_what_changes_nothing_is_said(client: TestClient) -> None:
    body = generate(client, quality="hd", style="vivid", user="me", background="auto", foo=1, bar=[2]).json()
    assert body["enlarger"]["warnings"][:3] == [
        "quality hd changes nothing here",
        "style vivid changes nothing here",
        "unknown fields change nothing: bar, foo",
    ]
    said = generate(client, output_compression=3, partial_images=2).json()["enlarger"]["warnings"]
    assert "output_compression changes nothing: png keeps every pixel as it is" in said
    assert "partial_images changes nothing without stream" in said


# What is refused


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"n": 0}, "invalid_value", "n", "n is 0, expected greater than or equal to 1"),
    ({"n": 11}, "invalid_value", "n", "n is 11, expected 1 to 10"),
    ({"n": True}, "invalid_value", "n", "n is True, expected a valid integer"),
    ({"n": "2"}, "invalid_value", "n", "n is '2', expected a valid integer"),
    ({"prompt": 7}, "invalid_value", "prompt", "prompt is 7, expected a valid string"),
    ({"prompt": "x" * 32_001}, "invalid_prompt", "prompt", "32,001 characters, expected at most 32,000"),
    ({"prompt": "a\0b"}, "invalid_prompt", "prompt", "'prompt' holds NUL"),
    ({"negative_prompt": "\ud800"}, "invalid_prompt", "negative_prompt", "half a surrogate pair, U+D800"),
    ({"\udfff": 1}, "invalid_value", "\\udfff", "half a surrogate pair, U+DFFF"),
    ({"size": "7x64"}, "invalid_value", "size", "size is 7x64, expected both sides between 8 and 8192"),
    ({"size": "big"}, "invalid_value", "size", "size is 'big'"),
    ({"size": "8192x8192", "upscale": 2}, "image_too_large", "size", "16384x16384 pixels"),
    ({"num_inference_steps": 151}, "invalid_value", "num_inference_steps", "is 151, expected 1 to 150"),
    ({"guidance_scale": 1e200}, "invalid_value", "guidance_scale", "expected less than or equal to 100"),
    ({"seed": -2}, "invalid_value", "seed", "seed is -2"),
    ({"seed": 2**64}, "invalid_value", "seed", "expected less than or equal to 18446744073709551615"),
    ({"seed": 10**400}, "invalid_value", "seed", "expected"),
    ({"scheduler": "no-such"}, "invalid_value", "scheduler", "expected the name of a solver, one of euler, "),
    ({"upscale": 17}, "invalid_value", "upscale", "upscale is 17.0, expected true, or 1 to 16"),
    ({"upscale": "big"}, "invalid_value", "upscale", "expected a valid boolean, or a valid number"),
    ({"output_format": "gif"}, "invalid_value", "output_format", "expected 'png', 'jpeg' or 'webp'"),
    ({"background": "transparent"}, "unsupported", "background", "paint every pixel"),
    ({"model": "no-such"}, "model_not_found", "model", "no-such"),
    ({"refiner": True, "model": "tiny-refiner"}, "unsupported", "model", "cannot generate"),
]


@pytest.mark.parametrize(("fields", "code", "param", "text"), REFUSED)
def test_a_value_that_is_wrong_is_named(
    still: tuple[TestClient, FakeService], fields: dict[str, Any], code: str, param: str, text: str
) -> None:
    client, _ = still
    body = json.dumps({"prompt": "a cat"} | fields)
    answer = client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    problem_in(answer, 404 if code == "model_not_found" else 400, code, param, text)


@pytest.mark.parametrize("text", ["NaN", "1e309", "nan", "inf", "", "1_000", "2 ", "0x2", "½"])
def test_numbers_of_forms_are_numbers(still: tuple[TestClient, FakeService], text: str) -> None:
    client, _ = still
    problem_in(upscale(client, prompt="x", guidance_scale=text), 400, "invalid_value", "guidance_scale", "expected a")
    problem_in(upscale(client, scale=text), 400, "invalid_value", "scale", "scale is ")


BODIES = [
    (b"{", "invalid_json", "not valid JSON"),
    (b"[1]", "invalid_json", "a JSON list, expected an object"),
    (b'{"prompt": "a", "prompt": "b"}', "invalid_json", "'prompt' is there twice"),
    (b'{"prompt": "a", "n": NaN}', "invalid_json", "NaN is not JSON"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "invalid_json", "not valid JSON"),
    (b"[" * 200_000, "invalid_json", "nested too deeply"),
    (b'{"prompt": "\xff"}', "invalid_json", "not valid JSON"),
    (b"", "invalid_json", "not valid JSON"),
]


@pytest.mark.parametrize(("body", "code", "text"), BODIES)
def test_a_body_that_is_no_json_object_is_refused(
    still: tuple[TestClient, FakeService], body: bytes, code: str, text: str
) -> None:
    headers = {"Content-Type": "application/json"}
    problem_in(still[0].post("/v1/images/generations", content=body, headers=headers), 400, code, None, text)


def test_other_content_types_are_refused(still: tuple[TestClient, FakeService]) -> None:
    client, _ = still
    for headers in ({"Content-Type": "text/plain"}, {}):
        answer = client.post("/v1/images/generations", content=b'{"prompt": "x"}', headers=headers)
        problem_in(answer, 415, "unsupported_media_type", None, "expected application/json")
    answer = client.post("/v1/images/upscale", json={"prompt": "x"})
    problem_in(answer, 415, "unsupported_media_type", None, "expected multipart/form-data")


def test_a_missing_prompt_is_missing(still: tuple[TestClient, FakeService]) -> None:
    client, _ = still
    answer = client.post("/v1/images/generations", json={})
    problem_in(answer, 400, "missing_parameter", "prompt", "prompt is missing")


def test_forms_that_cannot_be_used(still: tuple[TestClient, FakeService]) -> None:
    client, fake = still
    path = "/v1/images/upscale"
    missing = client.post(path, data={"prompt": "x"})
    problem_in(missing, 400, "missing_parameter", "image", "image is missing")
    text = client.post(path, files={"other": b"x"}, data={"image": "photo.png"})
    problem_in(text, 400, "unsupported", "other", "the file 'other' has no use here; expected image")
    text = client.post(path, data={"image": "photo.png"})
    problem_in(text, 400, "invalid_value", "image", "curl sends one with image=@file")
    count = client.post(path, files=[("image[]", png()), ("image[]", png())], data={"prompt": "x"})
    problem_in(count, 400, "unsupported", "image", "found 2 pictures in image, expected 1")
    twice = b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n' * 2 + b"--b--\r\n"
    answer = client.post(path, content=twice, headers={"Content-Type": "multipart/form-data; boundary=b"})
    problem_in(answer, 400, "invalid_value", "n", "'n' is there twice")
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=b; charset=nonsense",
        "multipart/form-data; boundary=c",
    ):
        answer = client.post(path, content=twice, headers={"Content-Type": kind})
        assert answer.status_code == 400, kind
    many = client.post(path, files={"image": png()}, data={f"f{i}": "1" for i in range(40)})
    problem_in(many, 400, "invalid_form", None, "Too many fields")
    assert not fake.leftover_files


def test_pictures_that_cannot_be_used_leave_nothing(tmp_path: Path) -> None:
    fake = fake_service(tmp_path, bounds=Bounds(image=5000, bundled_pixels=1000))
    with TestClient(fake.app) as client:
        problem_in(upscale(client, b"", prompt="x"), 400, "empty_image_file", "image", "the file is empty")
        problem_in(
            upscale(client, b"x" * 5001, prompt="x"), 400, "image_file_too_large", "image", "more than 5,000 bytes"
        )
        problem_in(upscale(client, b"nothing", prompt="x"), 400, "image_parse_error", "image", "cannot be decoded")
        problem_in(upscale(client, png(50, 50), prompt="x"), 400, "image_too_large", "image", "too many pixels")
        problem_in(upscale(client, prompt="x", size="50x50"), 400, "image_too_large", "size", "size is 50x50")
    assert not fake.leftover_files


def test_a_result_over_the_limit_is_refused(tmp_path: Path) -> None:
    fake = fake_service(tmp_path, bounds=Bounds(output_pixels=1000, bundled_output_pixels=2000))
    with TestClient(fake.app) as client:
        for model, most in (("bundled", "2,000"), ("tiny-x2", "1,000")):
            words = f"320x160 pixels, expected at most {most}"
            problem_in(upscale(client, scale=16, model=model), 400, "image_too_large", "scale", words)
        shown = {one["id"]: one["enlarger"]["output_pixels"] for one in client.get("/v1/models").json()["data"]}
    assert (shown["bundled"], shown["tiny-x2"]) == (2000, 1000)
    assert not fake.leftover_files


def test_what_the_framework_refuses_has_the_same_form(still: tuple[TestClient, FakeService]) -> None:
    client, _ = still
    problem_in(client.get("/no/such"), 404, "not_found", None, 'there is nothing at "/no/such"')
    answer = client.put("/v1/jobs/x")
    problem_in(answer, 405, "method_not_allowed", None, "expected DELETE, GET")
    assert answer.headers["allow"] == "DELETE, GET"
    problem_in(client.get("/v1/jobs?limit=0"), 400, "invalid_value", "limit", "limit is '0', expected greater")
    problem_in(client.get("/v1/jobs?status=odd"), 400, "invalid_value", "status", "status is 'odd', expected")


# Jobs


def test_a_job_for_later(client: TestClient, fake: FakeService) -> None:
    fake.queue.held = True
    answer = upscale(client, prompt="x", live="true", headers={"Prefer": "wait=5, respond-async"})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"http://testserver/v1/jobs/{job['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert (job["object"], job["status"], job["position"], job["result"]) == ("job", "queued", 1, None)
    assert not only(fake).attached
    assert only(fake).spec.live
    problem_in(client.get(f"/v1/jobs/{job['id']}/preview"), 404, "preview_not_found", None, "has no preview")
    problem_in(client.get(f"/v1/images/{job['id']}/content"), 404, "job_not_found", None, "no pictures yet")
    fake.queue.held = False
    done = until_over(client, job["id"])
    assert (done["status"], done["progress"], done["position"]) == ("succeeded", 1.0, None)
    assert client.get(done["result"]["data"][0]["url"]).status_code == 200
    assert client.get(done["preview_url"]).headers["content-type"] == "image/png"
    assert [one["id"] for one in client.get("/v1/jobs?status=succeeded").json()["data"]] == [job["id"]]
    assert client.get("/v1/queue").json()["counts"] == {"succeeded": 1}
    assert client.delete(f"/v1/jobs/{job['id']}").json() == {"id": job["id"], "object": "job", "deleted": True}
    problem_in(client.get(f"/v1/jobs/{job['id']}"), 404, "job_not_found", "id", "there is no job")
    assert not fake.leftover_files


@pytest.mark.parametrize("seen", [1, 2])
def test_a_client_that_goes_before_it_hears_of_its_job_leaves_none(
    client: TestClient, fake: FakeService, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    """It is looked for before the job is taken, and once more before it is told of."""
    looks, fake.queue.held = list[int](), True

    async def is_gone(request: Request) -> bool:
        looks.append(1)
        return len(looks) >= seen

    monkeypatch.setattr(Request, "is_disconnected", is_gone)
    answer = upscale(client, prompt="x", headers={"Prefer": "respond-async"})
    problem_in(answer, 499, "client_closed", None, "the client went away before its job was known to it")
    canceled = [(id, "disconnect") for id in fake.queue.known]
    assert len(canceled) == seen - 1 and fake.queue.canceled == canceled
    assert len(fake.leftover_files) == seen - 1
    kept = upscale(client, prompt="x", headers={"Prefer": "respond-async", "Idempotency-Key": "k"})
    assert kept.status_code == 202, "it can be asked for again"


def test_a_result_that_is_too_large_is_refused_before_the_picture_is_read(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*args: Any, **options: Any) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(FakeDecoder, "decode_image", decode)
    sent = {"size": "4096x4096", "n": "10"}
    for route, fields in (("upscale", {"scale": "2"}), ("edits", {"prompt": "a"}), ("variations", {})):
        answer = client.post(f"/v1/images/{route}", files={"image": ("a.png", png(1, 1))}, data=sent | fields)
        problem_in(answer, 400, "image_too_large", "scale" if fields == {"scale": "2"} else "size", "10 times")


def test_a_request_is_canceled_by_its_key(client: TestClient, fake: FakeService) -> None:
    fake.queue.held = True
    job = upscale(client, prompt="x", headers={"Prefer": "respond-async", "Idempotency-Key": "k+1"}).json()
    answer = client.post("/v1/jobs/cancel", params={"idempotency_key": "k+1"}).json()
    assert (answer["object"], answer["canceled"], answer["job"]["id"]) == ("request", True, job["id"])
    assert answer["job"]["status"] == "canceled"
    assert client.post("/v1/jobs/cancel?idempotency_key=other").json()["job"] is None
    problem_in(
        client.post("/v1/jobs/cancel"), 400, "missing_parameter", "idempotency_key", "idempotency_key is missing"
    )
    problem_in(client.post("/v1/jobs/cancel?idempotency_key=a%20b"), 400, "invalid_value", "idempotency_key", "'a b'")


def until_over(client: TestClient, id: str) -> dict[str, Any]:
    for _ in range(400):
        job = client.get(f"/v1/jobs/{id}").json()
        if job["status"] in ("succeeded", "failed", "canceled"):
            return job
        time.sleep(0.005)
    raise AssertionError(job)


def events_of(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_events_are_replayed_from_where_they_were_left(client: TestClient) -> None:
    id = generate(client, live=True, headers={"Prefer": "respond-async"}).json()["id"]
    until_over(client, id)
    answer = client.get(f"/v1/jobs/{id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [event["event"] for event in events] == ["queued", "started", "progress", "preview", "succeeded"]
    assert [event["id"] for event in events] == ["1", "2", "3", "4", "5"]
    assert json.loads(events[2]["data"]) == {
        "progress": 0.25,
        "stage": "denoise",
        "step": 1,
        "steps": 4,
        "eta_seconds": 1.5,
        "status": "running",
    }
    assert json.loads(events[3]["data"])["preview_url"].endswith(f"/v1/jobs/{id}/preview")
    assert json.loads(events[4]["data"]) == client.get(f"/v1/jobs/{id}").json()
    later = client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": "3"}).text
    assert [event["id"] for event in events_of(later)] == ["4", "5"]
    assert events_of(client.get(f"/v1/jobs/{id}/events?after=4").text)[0]["id"] == "5"
    odd = client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": "x"})
    problem_in(odd, 400, "invalid_value", "Last-Event-ID", "Last-Event-ID is 'x'")


def test_a_job_is_canceled_once(client: TestClient, fake: FakeService) -> None:
    fake.queue.held = True
    id = generate(client, headers={"Prefer": "respond-async"}).json()["id"]
    for _ in range(2):
        job = client.post(f"/v1/jobs/{id}/cancel").json()
        assert (job["status"], job["error"]["code"]) == ("canceled", "canceled")
    assert fake.queue.canceled == [(id, "client")]


def test_one_stream_tells_of_all_jobs_of_its_owner_alone(fake: FakeService) -> None:
    ids = {owner: new_job_id() for owner in ("a", "b")}
    for owner, id in ids.items():
        fake.queue.known[id] = Job(id, JobSpec("upscale", "bundled"), "queued", time.time(), owner)

    async def event_names() -> list[str]:
        stream = owner_events(fake.app.state.service, "a", "http://here")
        opened = await anext(stream)
        for id in reversed(ids.values()):
            fake.queue.event_logs.publish(id, "progress", {"status": "running", "progress": 0.5})
        event_names = [opened, await anext(stream)]
        await stream.aclose()
        return event_names

    opened, event = asyncio.run(event_names())
    assert opened == ": alive\n\n" and event.startswith("event: progress\ndata: ")
    assert json.loads(event.partition("data: ")[2]) == {"id": ids["a"], "status": "running", "progress": 0.5}


def test_a_job_that_fails_says_why(client: TestClient, fake: FakeService) -> None:
    fake.queue.problem = Problem(500, "non_finite_output", "the model gave numbers that are none")
    answer = generate(client)
    problem_in(answer, 500, "non_finite_output", None, "numbers that are none")
    assert answer.headers["x-should-retry"] == "false"
    id = generate(client, headers={"Prefer": "respond-async"}).json()["id"]
    assert until_over(client, id)["error"]["code"] == "non_finite_output"


def test_jobs_are_their_owners_alone(tmp_path: Path) -> None:
    fake = fake_service(tmp_path)

    async def owned(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            names = dict(scope["headers"])
            scope.setdefault("state", {})["owner"] = names.get(b"x-owner", b"").decode()
        await fake.app(scope, receive, send)

    with TestClient(owned) as client:
        mine, yours = {"x-owner": "a", "Prefer": "respond-async"}, {"x-owner": "b"}
        id = generate(client, headers=mine).json()["id"]
        for path in (f"/v1/jobs/{id}", f"/v1/jobs/{id}/events", f"/v1/jobs/{id}/preview"):
            problem_in(client.get(path, headers=yours), 404, "job_not_found", "id", "there is no job")
        problem_in(client.post(f"/v1/jobs/{id}/cancel", headers=yours), 404, "job_not_found", "id", "there is no job")
        problem_in(client.delete(f"/v1/jobs/{id}", headers=yours), 404, "job_not_found", "id", "there is no job")
        assert client.get("/v1/jobs", headers=yours).json()["data"] == []
        assert [job["id"] for job in client.get("/v1/jobs", headers=mine).json()["data"]] == [id]


def test_operators_alone_drain_and_cancel(tmp_path: Path) -> None:
    hashes = {name: hash_key(name) for name in ("boss", "guest")}
    fake = fake_service(tmp_path, keys=tuple(hashes.values()), operators=(hashes["boss"],))

    async def authenticated(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            key = dict(scope["headers"]).get(b"x-api-key", b"").decode()
            scope.setdefault("state", {})["owner"] = find_owner(key, tuple(hashes.values())) or ""
        await fake.app(scope, receive, send)

    with TestClient(authenticated) as client:
        listener, guest = {"X-API-Key": "boss"}, {"X-API-Key": "guest"}
        fake.queue.held = True
        job = generate(client, headers=guest | {"Prefer": "respond-async"}).json()["id"]
        for verb in ("drain", "resume", "cancel"):
            problem_in(client.post(f"/v1/operator/{verb}", headers=guest), 403, "operator_only", None, "for operators")
        assert client.post("/v1/operator/drain", headers=listener).status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.post("/v1/operator/resume", headers=listener).status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/operator/cancel", params={"id": job}, headers=listener).status_code == 200
        assert client.get(f"/v1/jobs/{job}", headers=guest).json()["status"] == "canceled"
    with pytest.raises(InputError, match="operators holds a hash that keys does not"):
        load_settings(operators=(hashes["boss"],))


def test_a_key_gives_the_same_job_again(client: TestClient, fake: FakeService) -> None:
    headers = {"Idempotency-Key": "one"}
    first, second = (generate(client, headers=headers).json() for _ in range(2))
    assert first["enlarger"]["id"] == second["enlarger"]["id"]
    assert not only(fake).attached
    other = generate(client, prompt="a dog", headers=headers)
    problem_in(other, 400, "idempotency_key_reused", "Idempotency-Key", "use a new key for each")
    problem_in(
        generate(client, headers={"Idempotency-Key": ""}), 400, "invalid_value", "Idempotency-Key", "expected 1 to"
    )
    assert fake.leftover_files == [first["enlarger"]["id"]]


@pytest.mark.parametrize(
    "other", [{"image": png(16)}, {"scale": 3}, {"model": "bundled"}, {"live": "true"}, {"response_format": "url"}]
)
def test_a_key_does_not_give_what_another_request_made(client: TestClient, other: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "one"}
    same = [upscale(client, headers=headers, response_format="b64_json").json()["enlarger"]["id"] for _ in range(2)]
    assert same[0] == same[1]
    answer = upscale(client, headers=headers, **{"response_format": "b64_json"} | other)
    problem_in(answer, 400, "idempotency_key_reused", "Idempotency-Key", "use a new key for each")


def test_a_full_queue_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    fake = fake_service(tmp_path, queue=1)
    with TestClient(fake.app) as client:
        fake.queue.held = True
        first = upscale(client, prompt="x", headers={"Prefer": "respond-async"}).json()["id"]
        answer = upscale(client, prompt="x")
        problem_in(answer, 429, "queue_full", None, "full")
        assert answer.headers["retry-after"] == "2"
        assert fake.leftover_files == [first]


def test_a_client_that_goes_away_takes_its_job_along(tmp_path: Path) -> None:
    fake = fake_service(tmp_path)
    fake.queue.held = True
    body = {"prompt": "a cat", "size": "64x64"}
    with serve_in_thread(fake.app) as url:
        for more in ({}, {"stream": True}):
            with pytest.raises(httpx2.ReadTimeout), httpx2.Client(timeout=0.3) as client:
                client.post(f"{url}/v1/images/generations", json=body | more)
        with pytest.raises(httpx2.ReadTimeout), httpx2.Client(timeout=0.3) as client:
            client.post(f"{url}/v1/images/generations", json=body, headers={"Idempotency-Key": "kept"})
        end = time.monotonic() + 2
        while len(fake.queue.canceled) < 2 and time.monotonic() < end:
            time.sleep(0.01)
    assert [cause for _, cause in fake.queue.canceled] == ["disconnect"] * 2
    assert [job.status for job in fake.queue.known.values()] == ["canceled", "canceled", "queued"]


# The rest


def test_health(client: TestClient, fake: FakeService) -> None:
    assert client.get("/v1/").json() == {"status": True}
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "state": "READY"}
    assert client.get("/health").json() == {"status": "ok"}
    fake.queue.state = "STARTING"
    assert client.get("/healthz").status_code == 200
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["state"], answer.json()["error"]["code"]) == (
        503,
        "STARTING",
        "model_loading",
    )
    answer = client.get("/health")
    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    assert (answer.status_code, answer.json()) == (503, {"error": error})
    answer = generate(client)
    problem_in(answer, 503, "model_loading", None, "being read")
    assert answer.headers["retry-after"] == "5"


def test_models_info_metrics(client: TestClient) -> None:
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["tiny-sd", "tiny-refiner", "bundled", "tiny-x2"]
    assert client.get("/v1/models/dall-e-2").json()["id"] == "tiny-sd"
    problem_in(client.get("/v1/models/no/such"), 404, "model_not_found", "model", "there is no model 'no/such'")
    assert client.post("/v1/models/tiny-sd/load").json()["enlarger"]["loaded_bytes"] == 1000
    assert client.post("/v1/models/tiny-sd/unload").json()["enlarger"]["loaded_bytes"] is None
    info = client.get("/info").json()
    assert info["limits"]["pixels"] == 50_000_000
    assert not info["fetch"] and info["decoder_confinement"] == ["landlock", "seccomp"]
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert b"enlarger_queue_size" in answer.content


def test_what_is_for_readers_of_the_pages_source_is_not_sent() -> None:
    source = (
        b"/** A file. */\nif (a) {\n\t// Why.\n\t\tb(); // here\n\t/* one */ c('//');\n}\n\n    `  //`\n\t/* d */\n"
    )
    assert without_comments(source) == b"\nif (a) {\n\nb(); // here\n/* one */ c('//');\n}\n\n    `  //`\n\n"


def test_the_page_comes_from_a_list(client: TestClient) -> None:
    assert "index.html" in PAGE_FILES
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert client.get("/", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.head("/").status_code == 200
    for name in PAGE_FILES:
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/page/zip.js").content == without_comments(
        (files("enlarger.service") / "page/zip.js").read_bytes()
    )
    problem_in(client.get("/page/page.py"), 404, "not_found", None, "the page has no file 'page.py'")
    problem_in(client.get("/page/..%2Fsettings.py"), 404, "not_found", None, "there is nothing")
