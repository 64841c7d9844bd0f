"""The client of the service: what it sends, how it reads answers, and that it loses no job."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image

from enlarger import AsyncClient, Client
from enlarger.client import endpoints, job_protocol
from enlarger.client.endpoints import HttpRequest
from enlarger.client.images import encode_image_file
from enlarger.client.job_protocol import Compute, OpenStream, ReadStream, RetryPolicy, Send, Sleep
from enlarger.client.responses import HttpResponse, NoResponse, Progress, error_from_response, job_from_json
from enlarger.errors import Cancelled, CheckpointError, InputError, NonFinite, ServiceError, Unsupported

ID = "abcdefghijklmnopqrstuv"
PICTURE = Image.effect_noise((16, 12), 60).convert("RGB")


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def job(status: str, **more: Any) -> dict[str, Any]:
    return {"id": ID, "object": "job", "status": status, "task": "upscale", "model": "bundled", "progress": 0.0} | more


RESULT = {
    "created": 1,
    "data": [{"url": f"http://elsewhere.example/v1/images/{ID}/content", "width": 16, "height": 12}],
    "enlarger": {
        "id": ID,
        "model": "bundled",
        "seeds": [7],
        "warnings": ["a note"],
        "consistency": 0.5,
        "recipe": {"a": 1},
    },
}
DONE = job("succeeded", progress=1.0, result=RESULT)
PROBLEM = {"message": "it broke", "type": "server_error", "param": None, "code": "worker_died"}


def answer(found: Any, status: int = 200, **headers: str) -> HttpResponse:
    return HttpResponse(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(found).encode()
    )


STREAM = HttpResponse(200, {"content-type": "text/event-stream; charset=utf-8"})


def event(number: int, kind: str, data: dict[str, Any]) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


class Clock:
    """A clock that pauses move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def played(
    replies: list[Any], watch: Callable[[Progress], None] = job_protocol.ignore, **patience: Any
) -> tuple[Any, list[Any]]:
    """The result of making a picture where the service replies so, and what was done."""
    clock = Clock()
    kind = {"timeout": 600.0, "retries": 2} | patience
    steps = job_protocol.run_task(
        lambda: endpoints.upscale(PICTURE, 2, None, {}), "key", RetryPolicy(**kind, started=0.0, clock=clock), watch
    )
    done: list[Any] = []
    waiting = iter(replies)
    action = next(steps)
    try:
        while True:
            if isinstance(action, Compute):
                try:
                    reply = action.function()
                except Exception as error:  # noqa: BLE001 - as the client does
                    action = steps.throw(error)
                else:
                    action = steps.send(reply)
                continue
            done.append(action)
            if isinstance(action, Sleep):
                clock.now += action.seconds
                action = steps.send(None)
                continue
            reply = next(waiting)
            action = steps.throw(reply) if isinstance(reply, BaseException) else steps.send(reply)
    except StopIteration as end:
        assert list(waiting) == [], "not all replies were asked for"
        return end.value, done


def paths(done: list[Any]) -> list[str]:
    return [f"{one.request.method} {one.request.path}" for one in done if isinstance(one, Send | OpenStream)]


PICTURE_FILE = png(PICTURE)
CONTENT = HttpResponse(200, {}, PICTURE_FILE)
ACCEPTED = answer(job("queued", position=2), 202)
UNDONE = answer({"object": "request", "canceled": True, "job": None})


def test_events_lead_to_the_pictures() -> None:
    seen: list[Progress] = []
    first = event(1, "started", {"status": "running", "stage": "denoise", "step": 1, "steps": 4, "eta_seconds": 2.5})
    last = event(2, "succeeded", DONE)
    pieces = [b": alive\n\n", first[:20], first[20:] + last[:9], last[9:]]
    result, done = played([ACCEPTED, STREAM, *pieces, CONTENT], seen.append)
    assert [(p.stage, p.done, p.total, p.eta_seconds, p.position) for p in seen] == [
        ("queued", 0, 1, None, 2),
        ("denoise", 1, 4, 2.5, 2),
    ]
    assert paths(done) == [
        "POST /v1/images/upscale",
        f"GET /v1/jobs/{ID}/events",
        f"GET /v1/images/{ID}/content",  # of the address only the path: the key goes nowhere else
    ]
    assert done[0].request.headers == {"Prefer": "respond-async", "Idempotency-Key": "key"}
    assert result.image.tobytes() == PICTURE.tobytes()
    assert (result.seeds, result.model, result.id, result.notes) == ((7,), "bundled", ID, ("a note",))
    assert (result.consistency, result.recipe, result.files) == (0.5, {"a": 1}, (png(PICTURE),))


def test_a_lost_stream_goes_on_after_the_last_event() -> None:
    first = event(41, "progress", {"status": "running"})
    running = answer(job("running"))
    down = [NoResponse("gone"), answer({"error": PROBLEM}, 502), NoResponse("gone"), running]
    result, done = played(
        [ACCEPTED, STREAM, first, NoResponse("cut"), *down, STREAM, event(42, "succeeded", DONE), CONTENT]
    )
    assert result.id == ID
    heard = [one.request.headers.get("Last-Event-ID") for one in done if isinstance(one, OpenStream)]
    assert heard == [None, "41"]


def test_without_events_the_job_is_asked_for() -> None:
    running = answer(job("running"))
    deaf = [NoResponse("no"), running, HttpResponse(404, {}), running]
    _, done = played([ACCEPTED, *deaf, running, answer(DONE), CONTENT])
    assert sum(isinstance(one, OpenStream) for one in done) == job_protocol.MAX_SILENT_STREAMS
    assert [one.seconds for one in done if isinstance(one, Sleep)] == [job_protocol.POLL_SECONDS] * 2


def test_a_job_is_given_up_when_nobody_answers() -> None:
    with pytest.raises(ServiceError, match=r"gone; is the service running \(`enlarger serve`\)"):
        played([ACCEPTED, *[NoResponse("gone")] * 30])


def test_busy_services_are_waited_for() -> None:
    full = answer({"error": {"message": "full", "code": "queue_full"}}, 429, retry_after="7")
    starting = answer({"error": {"message": "starting", "code": "model_loading"}}, 503, retry_after="2")
    seen: list[Progress] = []
    _, done = played([full, full, full, starting, answer(DONE, 202), CONTENT], seen.append)
    assert [one.seconds for one in done if isinstance(one, Sleep)] == [7, 7, 7, 2]
    assert seen[0] == Progress("waiting for the service", 0, 1)
    with pytest.raises(ServiceError, match=r"^full$") as caught:
        played([full] * 3 + [UNDONE], timeout=15)
    assert (caught.value.status, caught.value.code) == (429, "queue_full")


def test_broken_connections_are_tried_again() -> None:
    _, done = played([NoResponse("no"), answer({"error": PROBLEM}, 500), answer(DONE, 202), CONTENT])
    assert [one.seconds for one in done if isinstance(one, Sleep)] == [0.5, 1.0]
    assert len({one.request.headers["Idempotency-Key"] for one in done[:4] if isinstance(one, Send)}) == 1
    with pytest.raises(ServiceError, match="no; is the service running"):
        played([NoResponse("no")] * 3 + [UNDONE])
    with pytest.raises(ServiceError, match=r"^it broke \(request 5\)$"):
        played([answer({"error": PROBLEM}, 500, x_should_retry="false", x_request_id="5")])


def test_a_call_ends_with_its_time_and_cancels_the_job() -> None:
    running = answer(job("running"))
    deaf = [NoResponse("no"), running, NoResponse("no"), running]
    with pytest.raises(ServiceError, match="no result within 3 seconds; give a larger timeout") as caught:
        played([ACCEPTED, *deaf, *[running] * 4, answer(job("canceled"))], timeout=3)
    assert caught.value.code == "timeout"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_breaks_in_cancels_the_job(error: BaseException) -> None:
    steps = job_protocol.wait_for_result(
        job_from_json(job("running")), RetryPolicy(None, 2, 0.0), job_protocol.ignore, cancel_on_exit=True
    )
    assert isinstance(next(steps), OpenStream)
    assert isinstance(steps.send(STREAM), ReadStream)
    action = steps.throw(error)
    assert isinstance(action, Send)
    assert (action.request.path, action.timeout) == (f"/v1/jobs/{ID}/cancel", job_protocol.CANCEL_SECONDS)
    with pytest.raises(type(error)):
        steps.send(NoResponse("gone"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_breaks_in_while_sending_cancels_the_request_by_its_key(error: BaseException) -> None:
    steps = job_protocol.run_task(
        lambda: endpoints.upscale(PICTURE, 2, None, {}), "k+1", RetryPolicy(None, 2, 0.0), job_protocol.ignore
    )
    asked = next(steps)
    assert isinstance(asked, Compute)
    assert isinstance(steps.send(asked.function()), Send)
    action = steps.throw(error)
    assert isinstance(action, Send) and action.timeout == job_protocol.CANCEL_SECONDS
    assert paths([action]) == ["POST /v1/jobs/cancel?idempotency_key=k%2B1"]
    with pytest.raises(type(error)):
        steps.send(NoResponse("gone"))


def test_a_watcher_may_cancel() -> None:
    def stop(progress: Progress) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        played([ACCEPTED, answer(job("canceled"))], stop)
    with pytest.raises(Cancelled, match="enough"):
        played([answer({"error": PROBLEM}, 429, retry_after="1"), UNDONE], stop)


@pytest.mark.parametrize(
    ("end", "kind", "text"),
    [
        (job("failed", error=PROBLEM), ServiceError, "it broke"),
        (job("failed", error=PROBLEM | {"type": "invalid_request_error"}), InputError, "it broke"),
        (job("failed", error=PROBLEM | {"code": "non_finite_output"}), NonFinite, "it broke"),
        (job("canceled", error=PROBLEM | {"code": "canceled"}), Cancelled, "it broke"),
        (job("canceled"), Cancelled, f"job {ID} was canceled"),
        (job("succeeded"), ServiceError, f"job {ID} succeeded without a result"),
        ({"object": "job"}, ServiceError, "found object in the service's answer, expected a job with id and status"),
    ],
)
def test_how_a_job_may_end(end: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^{text}$"):
        played([answer(end, 202)])


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [
        (answer({"error": {"message": "bad", "code": "invalid_image"}}, 400), InputError, "bad"),
        (answer({"error": {"message": "bad", "code": "unsupported"}}, 400), Unsupported, "bad"),
        (answer({"error": {"message": "bad", "code": "model_unusable"}}, 500), CheckpointError, "bad"),
        (answer({"error": {"message": "bad", "code": "invalid_api_key"}}, 401), ServiceError, "bad"),
        (answer({"detail": "x"}, 422), ServiceError, """the service answered 422: {"detail": "x"}"""),
        (HttpResponse(502, {}, b"<html>\n bad gateway"), ServiceError, "the service answered 502: <html> bad gateway"),
        (HttpResponse(301, {}, b""), ServiceError, "the service answered 301: nothing"),
    ],
)
def test_errors_are_those_of_the_library(found: HttpResponse, kind: type[Exception], text: str) -> None:
    error = error_from_response(found)
    assert (type(error), str(error)) == (kind, text)


def test_answers_that_are_no_json() -> None:
    with pytest.raises(ServiceError, match="the service answered 200 with '<html>', expected a JSON object"):
        HttpResponse(200, {}, b"<html>").json()
    with pytest.raises(ServiceError, match="what the service sent cannot be read as a picture"):
        played([answer(DONE, 202), HttpResponse(200, {}, b"no picture")])
    with pytest.raises(
        InputError, match="the service answered the address 'file:///etc/passwd', expected one with /v1/"
    ):
        endpoints.content("file:///etc/passwd")


def test_options_go_by_their_names_in_http() -> None:
    call = endpoints.upscale(
        PICTURE, 3, "x4", {"prompt": "a", "steps": 9, "guidance": 0, "consistent": False, "seed": 0}
    )
    assert call.form == {
        "scale": "3", "prompt": "a", "num_inference_steps": "9", "guidance_scale": "0", "seed": "0", "n": "1",
        "consistent": "false", "response_format": "url", "model": "x4",
    }  # fmt: skip
    made = endpoints.generate(
        "a", "sd", True, {"width": 64, "height": 32, "negative": "b", "solver": "heun", "upscale": 2}
    )
    assert made.json == {
        "prompt": "a", "negative_prompt": "b", "seed": 0, "n": 1, "scheduler": "heun", "size": "64x32", "upscale": 2,
        "model": "sd", "refiner": True,
    }  # fmt: skip
    call = endpoints.inpaint(PICTURE, PICTURE, "", None, {"mask_mode": "white", "strength": 0.5})
    assert call.form is not None
    assert call.form["mask_mode"] == "luminance"
    assert set(call.files) == {"image", "mask"}
    assert endpoints.refine(PICTURE, "", None, {}).form == {
        "prompt": "", "seed": "0", "n": "1", "strength": "0.3", "response_format": "url",
        "mask_mode": "none",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("http_request", "kind", "text"),
    [
        (lambda: endpoints.upscale(PICTURE, 17, None, {}), InputError, "by is 17, expected 1 to 16"),
        (
            lambda: endpoints.upscale(PICTURE, 2, None, {"bigger": 1}),
            InputError,
            "the options are those of UpscaleRequest",
        ),
        (
            lambda: endpoints.upscale(PICTURE, 2, None, {"profile": "original"}),
            Unsupported,
            "but a service does not take it",
        ),
        (
            lambda: endpoints.upscale(PICTURE, 2, None, {"seed": [1, 2]}),
            InputError,
            "seed has several values, expected one",
        ),
        (
            lambda: endpoints.generate("a", None, False, {"width": 64}),
            InputError,
            "width is 64 and height is None; give both",
        ),
        (lambda: endpoints.generate("a", None, False, {"score": 7}), Unsupported, "score is 7, .* leave it at 6.0"),
        (lambda: endpoints.inpaint(PICTURE, None, "", None, {}), InputError, "mask is missing"),  # type: ignore[arg-type]
        (lambda: endpoints.inpaint(PICTURE, PICTURE, "", None, {"crop": 3}), Unsupported, "crop is 3, but a service"),
        (lambda: Client("localhost:8997"), InputError, "url is 'localhost:8997', expected an address such as http://"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_sent(
    http_request: Callable[[], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        http_request()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F"])
def test_pil_images_are_sent_without_a_loss(mode: str) -> None:
    image = Image.new("I;16", (6, 4), 40000) if mode == "I;16" else PICTURE.convert(mode)
    image.info["icc_profile"] = b"profile" if mode == "RGB" else None
    image.getexif()[0x0112], image.getexif()[0x010F] = 6, "maker"
    with Image.open(io.BytesIO(encode_image_file(image))) as sent:
        assert sent.mode == mode
        assert sent.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
        assert not {0x0112, 0x010F} & set(sent.getexif())
        assert sent.info.get("icc_profile") == (b"profile" if mode == "RGB" else None)


@pytest.mark.parametrize(
    ("array", "mode", "value"),
    [
        (np.full((4, 6), 7, np.uint8), "L", 7),
        (np.full((4, 6, 1), 40000, np.uint16), "I;16", 40000),
        (np.full((4, 6, 3), 257 * 9, np.uint16), "RGB", (9, 9, 9)),
        (np.full((4, 6, 2), 0.5), "LA", (128, 128)),
        (np.full((4, 6, 4), 1.0, np.float32), "RGBA", (255,) * 4),
    ],
)
def test_arrays_are_sent(array: np.ndarray[Any, Any], mode: str, value: Any) -> None:
    with Image.open(io.BytesIO(encode_image_file(array))) as sent:
        assert (sent.mode, sent.size, sent.getpixel((0, 0))) == (mode, (6, 4), value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (np.zeros((2, 3, 4, 5)), r"image: found shape \(2, 3, 4, 5\), expected \(H, W\) or"),
        (np.zeros((4, 6), np.int64), "found int64, expected uint8, uint16 or floats"),
        (np.full((4, 6), 9.0), r"found values from 9 to 9, expected floats in 0\.\.1"),
        ("no/such/file.png", "no/such/file.png: cannot be read"),
        (3, "image is a int, expected a path, bytes, PIL image or numpy array"),
        (Image.new("HSV", (4, 4)), "a PIL image of mode HSV cannot be sent"),
    ],
)
def test_what_is_no_picture_is_refused(source: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        encode_image_file(source)


def test_files_and_bytes_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"anything")
    assert encode_image_file(path) == encode_image_file(str(path)) == encode_image_file(b"anything") == b"anything"


class Script:
    """A fake service: what it was asked, and a function that answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.running = threading.Event()
        self.canceled = threading.Event()
        self.cut = 1  # streams that break off


@contextmanager
def fake() -> Iterator[tuple[str, Script]]:
    """A service on a real socket whose first stream of events breaks off."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.answered("POST")

        def do_GET(self) -> None:
            self.answered("GET")

        def answered(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append((method, self.path, dict(self.headers.items()), body))
            if self.path.endswith("/events"):
                self.stream()
            elif self.path.endswith("/content"):
                self.give(png(PICTURE))
            elif self.path.endswith("/cancel"):
                script.canceled.set()
                self.give(json.dumps(job("canceled")).encode())
            elif method == "POST":
                self.give(json.dumps(job("queued")).encode(), 202)
            elif self.path == "/v1/models":
                self.give(json.dumps({"data": [{"id": "bundled"}]}).encode())
            else:
                self.give(json.dumps(job("running")).encode())

        def give(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(event(1, "started", {"status": "running", "stage": "denoise", "step": 1, "steps": 2}))
            self.wfile.flush()
            script.running.set()
            if script.cut:
                script.cut -= 1
                return
            script.canceled.wait(0.2)
            self.wfile.write(event(2, "succeeded", DONE))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", script
        server.shutdown()


def test_the_client_over_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENLARGER_KEY", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    stages: list[str] = []
    with fake() as (url, script), Client(f"{url}/v1") as client:
        result = client.upscale(PICTURE, watch=lambda progress: stages.append(progress.stage))
        assert [model.id for model in client.models()] == ["bundled"]
    assert result.image.tobytes() == PICTURE.tobytes()
    assert "denoise" in stages
    method, path, headers, body = script.asked[0]
    assert (method, path, headers["Authorization"]) == ("POST", "/v1/images/upscale", "Bearer secret")
    assert png(PICTURE)[:8] in body
    assert b'name="scale"\r\n\r\n2.0' in body
    assert [headers.get("Last-Event-ID") for _, path, headers, _ in script.asked if path.endswith("events")] == [
        None,
        "1",
    ]


@pytest.mark.parametrize("backend", ["asyncio"])
def test_the_async_client_over_a_socket(backend: str) -> None:
    async def main(url: str, script: Script) -> None:
        async with AsyncClient(url) as client:
            both: list[Any] = []

            async def one() -> None:
                both.append(await client.upscale(PICTURE))

            async with anyio.create_task_group() as group:
                group.start_soon(one)
                group.start_soon(one)
            assert [result.image.size for result in both] == [PICTURE.size] * 2
            script.running.clear()
            assert not script.canceled.is_set()
            with anyio.move_on_after(5) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(one)
                    await anyio.to_thread.run_sync(script.running.wait)
                    scope.cancel()
            assert script.canceled.is_set()
            assert len(both) == 2

    with fake() as (url, script):
        anyio.run(main, url, script, backend=backend)


def test_asyncio_cancellation_cancels_the_job() -> None:
    async def main(url: str, script: Script) -> None:
        script.cut = 0
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.upscale(PICTURE))
            await asyncio.to_thread(script.running.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with fake() as (url, script):
        asyncio.run(main(url, script))
    assert script.canceled.is_set()


def test_ctrl_c_cancels_the_job() -> None:
    code = (
        "import signal, sys, enlarger\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a run in the background ignores it
        "enlarger.Client(sys.argv[1]).upscale(sys.stdin.buffer.read())"
    )
    with fake() as (url, script):
        script.cut = 0
        held = subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert held.stdin is not None
        held.stdin.write(png(PICTURE))
        held.stdin.close()
        assert script.running.wait(20)
        held.send_signal(2)
        assert held.stderr is not None
        assert b"KeyboardInterrupt" in held.stderr.read()
        held.stderr.close()
        held.wait(10)
    assert script.canceled.is_set()


def test_progress_is_watched_in_the_thread_that_waits_and_may_ask_the_service() -> None:
    threads: set[threading.Thread] = set()
    with fake() as (url, script), Client(url) as client:

        def watch(progress: Progress) -> None:
            threads.add(threading.current_thread())
            assert client.job(ID).status == "running"

        client.upscale(PICTURE, watch=watch)
        assert threads == {threading.current_thread()}
        script.running.clear()
        script.cut = 0

        def stop(progress: Progress) -> None:
            if progress.stage == "denoise":
                raise Cancelled("enough")

        with pytest.raises(Cancelled, match=r"^enough$"):
            client.upscale(PICTURE, watch=stop)
        assert script.canceled.is_set()


def test_a_client_may_be_shared_by_threads() -> None:
    sizes: list[tuple[int, int]] = []
    with fake() as (url, script), Client(url) as client:
        script.cut = 0
        threads = [threading.Thread(target=lambda: sizes.append(client.upscale(PICTURE).image.size)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sizes == [PICTURE.size] * 5


def test_a_client_that_is_closed_or_forgotten_leaves_no_thread() -> None:
    before = threading.active_count()
    with fake() as (url, _):
        client = Client(url)
        assert client.models()[0].id == "bundled"
        del client
        closed = Client(url)
        closed.close()
        closed.close()
        with pytest.raises(RuntimeError):
            closed.models()
    assert threading.active_count() <= before + 1  # the server's


def test_a_list_goes_on_where_the_last_of_its_page_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def request(self: AsyncClient, request: HttpRequest) -> HttpResponse:
        asked.append(request.path.partition("after=")[2])
        if asked[-1] == "job-2":
            raise ServiceError("it has expired", 404, "job_not_found")
        found = {"": (3, 2), "job-3": (1, 0)}[asked[-1]]
        return answer({"data": [job("queued", id=f"job-{i}") for i in found], "has_more": asked[-1] == ""})

    monkeypatch.setattr(AsyncClient, "_request", request)
    jobs = anyio.run(AsyncClient("http://127.0.0.1:1").jobs)
    assert [one.id for one in jobs] == ["job-3", "job-2", "job-1", "job-0"]
    assert asked == ["", "job-2", "job-3"]


def test_nobody_there() -> None:
    begun = time.monotonic()
    with (
        Client("http://127.0.0.1:1", retries=0) as client,
        pytest.raises(
            ServiceError, match=r"http://127\.0\.0\.1:1 does not answer \(.*\); is the service running"
        ) as caught,
    ):
        client.health()
    assert caught.value.code == "unreachable"
    assert time.monotonic() - begun < 5


def test_the_client_needs_no_torch() -> None:
    code = "import sys, enlarger; enlarger.Client; print([m for m in ('torch', 'fastapi') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_base64_is_no_part_of_it() -> None:
    """A server that answers at once, with addresses, is understood too."""
    result, _ = played([answer(RESULT), CONTENT])
    assert base64.b64encode(result.files[0]) == base64.b64encode(PICTURE_FILE)
