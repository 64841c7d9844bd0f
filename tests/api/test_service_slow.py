"""A real server on a loopback port, and clients that are slow, lie about sizes or do not read."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from enlarger.service.jobs.admission import Reservation, Reservations
from enlarger.service.logging_config import JsonFormatter
from enlarger.service.metrics import Metrics
from enlarger.service.middleware.access_log import record_refusal
from enlarger.service.middleware.security_headers import SECURITY_HEADERS
from enlarger.service.middleware.stack import middleware_stack
from enlarger.service.problems import Problem
from enlarger.service.server import bind_socket, run_uvicorn
from enlarger.service.settings import MIB, Bounds, Settings

HEAD, IDLE, BODY, ANSWER = 0.4, 0.3, 1.0, 0.5  # seconds
SLACK = 0.5  # of a busy machine
LARGE = b"x" * (32 * MIB)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says how much it got."""
    request = Request(scope, receive)
    if scope["path"] == "/large":
        await Response(LARGE)(scope, receive, send)
    elif scope["path"] == "/waiting":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
    elif scope["path"] == "/deaf":
        await JSONResponse({"got": None})(scope, receive, send)
    else:
        got = 0
        async for piece in request.stream():
            got += len(piece)
        await JSONResponse({"got": got})(scope, receive, send)


async def unknown(owner: str, idempotency_key: str) -> bool:
    """No request was sent before."""
    return False


def roomy(owner: str, patience: float | None) -> Reservation:
    """There is always room."""
    return Reservations().reserve(owner)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(tmp_path_factory.mktemp("service")) as found:
        yield found


@contextmanager
def served(data: Path) -> Iterator[int]:
    bounds = Bounds(body=2 * MIB, header_seconds=HEAD, idle_seconds=IDLE, body_seconds=BODY, connections=128)
    settings = Settings(port=0, data=data, bounds=bounds)
    listener, stop = bind_socket(settings.host, settings.port), threading.Event()
    started = threading.Event()

    async def run() -> None:
        metrics = Metrics()
        guarded = middleware_stack(app, settings, metrics, roomy, unknown)
        async with run_uvicorn(guarded, settings, listener, metrics, ANSWER):
            started.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    number = listener.getsockname()[1]
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(10)
    try:
        yield number
    finally:
        stop.set()
        thread.join()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def post(path: str, *lines: str, kind: str = "application/json") -> bytes:
    return head("POST", path, f"Content-Type: {kind}", *lines)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the end of the connection."""
    found = b""
    try:
        while piece := connection.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


def one(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """The next answer on a connection: status, headers, JSON."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name] = value
    return status, headers, json.loads(file.read(int(headers["content-length"])))


def code(answer: tuple[int, dict[str, str], Any]) -> tuple[int, str]:
    return answer[0], answer[2]["error"]["code"]


def assert_strict(answer: tuple[int, dict[str, str], Any]) -> None:
    """It has an id, and the headers that every answer has."""
    _, headers, _ = answer
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert {name: headers[name.lower()] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def seconds_of_a_good_client(port: int) -> float:
    began = time.perf_counter()
    with connected(port) as connection:
        connection.sendall(post("/v1/images/edits", "Content-Length: 4") + b"abcd")
        assert one(connection)[2] == {"got": 4}
    return time.perf_counter() - began


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    began = time.perf_counter()
    with connected(port) as connection:
        assert rest(connection) == b""
    assert HEAD - 0.1 < time.perf_counter() - began < HEAD + SLACK


def test_headers_that_come_slowly_are_answered_with_408(port: int) -> None:
    began = time.perf_counter()
    with connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        time.sleep(HEAD / 2)
        connection.sendall(b"alhost\r\nX-A: ")
        answer = one(connection)
        assert code(answer) == (408, "request_timeout")
        assert answer[2]["error"]["message"] == "the headers were not whole after 0.4 s; send them faster"
        assert_strict(answer)
        assert rest(connection) == b""
    assert time.perf_counter() - began < HEAD + SLACK


def test_the_second_head_of_a_connection_has_a_deadline_too(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("GET", "/"))
        assert one(connection)[0] == 200
        began = time.perf_counter()
        connection.sendall(b"GET / HT")
        assert one(connection)[0] == 408
        assert time.perf_counter() - began < HEAD + SLACK


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", ["/v1/images/upscale", "/v1/images/generations"])
def test_a_body_that_stands_still_is_answered_with_408(port: int, path: str, length: str) -> None:
    began = time.perf_counter()
    with connected(port) as connection:
        connection.sendall(post(path, length))
        answer = one(connection)
        assert code(answer) == (408, "request_timeout")
        assert answer[2]["error"]["message"] == "the body stood still 0.3 s; send it faster"
        assert answer[1]["connection"] == "close"
        assert rest(connection) == b""
    assert IDLE - 0.1 < time.perf_counter() - began < IDLE + SLACK


def test_a_body_that_drips_is_cut_off_at_the_deadline_of_all_of_it(port: int) -> None:
    began = time.perf_counter()
    with connected(port) as connection:
        connection.sendall(post("/v1/images/upscale", "Content-Length: 1000", kind="multipart/form-data; boundary=x"))
        connection.setblocking(False)
        while time.perf_counter() - began < BODY - IDLE / 2:
            connection.send(b"x")
            time.sleep(IDLE / 4)
        connection.settimeout(5)
        answer = one(connection)
        assert answer[2]["error"]["message"] == "the body was not whole after 1 s; send it faster"
    assert time.perf_counter() - began < BODY + SLACK


def test_many_slow_clients_do_not_slow_a_good_one(port: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    try:
        for index, connection in enumerate(slow):
            started = post("/v1/images/edits", "Content-Length: 99") if index % 2 else b"GET / HT"
            connection.sendall(started)
        assert max(seconds_of_a_good_client(port) for _ in range(10)) < 0.5
    finally:
        for connection in slow:
            connection.close()


def test_one_connection_too_many_takes_the_place_of_the_longest_idle_one(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(129)]
    try:
        assert rest(held[0]) == b""
        held[1].sendall(head("GET", "/", "Connection: close"))
        assert b"HTTP/1.1 200" in rest(held[1])
    finally:
        for connection in held:
            connection.close()


def test_where_all_connections_are_busy_one_more_is_told_to_come_back(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(128):
            held = stack.enter_context(connected(port))
            held.sendall(head("GET", "/waiting"))
            assert held.recv(100).startswith(b"HTTP/1.1 200")
        answer = one(stack.enter_context(connected(port)))
        assert (code(answer), answer[1]["retry-after"]) == ((503, "unavailable"), "1")
        assert_strict(answer)


def test_a_client_that_does_not_read_is_dropped(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("GET", "/large"))
        time.sleep(3 * ANSWER)
        assert len(rest(connection)) < len(LARGE)


def test_a_client_that_reads_slowly_gets_all(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("GET", "/large", "Connection: close"))
        found = 0
        while piece := connection.recv(MIB):
            found += len(piece)
            if found < 4 * MIB:
                time.sleep(ANSWER / 8)
        assert found > len(LARGE)


@pytest.mark.parametrize(
    ("path", "limit"), [("/v1/images/edits", 2 * MIB), ("/v1/images/generations", MIB), ("/v1/jobs/x/cancel", 64 << 10)]
)
def test_an_announced_body_over_the_limit_is_refused_unread(port: int, path: str, limit: int) -> None:
    with connected(port) as connection:
        connection.sendall(post(path, f"Content-Length: {limit + 1}"))
        answer = one(connection)
        assert code(answer) == (413, "payload_too_large")
        assert answer[2]["error"]["message"] == f"the body is larger than {limit} bytes, the most that is taken here"
        assert answer[1]["connection"] == "close"
    with connected(port) as connection:
        connection.sendall(post(path, f"Content-Length: {limit}") + b"x" * limit)
        assert one(connection)[2] == {"got": 0 if path == "/v1/jobs/x/cancel" else limit}


def test_a_body_that_nobody_takes_stops_no_request(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("GET", "/", "Content-Length: 1000") + b"x" * 1000)
        assert one(connection)[2] == {"got": 0}
    with connected(port) as connection:
        connection.sendall(head("GET", "/healthz", "Transfer-Encoding: chunked"))
        answer = one(connection)
        assert code(answer) == (413, "payload_too_large")
        expected = "GET takes no body here, found one of unknown length; send the request without"
        assert answer[2]["error"]["message"] == expected


def chunk(size: int) -> bytes:
    return f"{size:x}\r\n".encode() + b"x" * size + b"\r\n"


def test_a_chunked_body_is_taken_up_to_the_limit(port: int) -> None:
    for pieces, expected in ((32, {"got": 2 * MIB}), (33, None)):
        with connected(port) as connection:
            connection.sendall(post("/v1/images/edits", "Transfer-Encoding: chunked"))
            for _ in range(pieces):
                connection.sendall(chunk(64 << 10))
            connection.sendall(b"0\r\n\r\n")
            answer = one(connection)
            assert answer[2] == expected if expected else code(answer) == (413, "payload_too_large")


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_pushing_200_megabytes_takes_no_memory(port: int, kind: str) -> None:
    process, most = psutil.Process(), 0
    seconds_of_a_good_client(port)
    before = process.memory_info().rss
    piece = chunk(64 << 10)
    with connected(port) as connection:
        try:
            connection.sendall(post("/v1/images/generations", "Transfer-Encoding: chunked", kind=kind))
            for _ in range(200 * MIB // len(piece)):
                connection.sendall(piece)
                most = max(most, process.memory_info().rss - before)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert most < 16 * MIB
    assert seconds_of_a_good_client(port) < 1


def test_the_sender_of_a_refused_body_sees_the_answer(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(post("/v1/images/edits", f"Content-Length: {6 * MIB}"))
        connection.sendall(b"x" * (6 * MIB))  # all of it before reading, as simple clients do
        assert code(one(connection)) == (413, "payload_too_large")
        assert rest(connection) == b""


def test_an_answer_before_the_end_of_the_body_closes_the_connection(port: int) -> None:
    began = time.perf_counter()
    with connected(port) as connection:
        connection.sendall(post("/deaf", "Content-Length: 1000") + b"x")
        status, headers, _ = one(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert time.perf_counter() - began < 0.5
        assert rest(connection) == b""
    assert time.perf_counter() - began < 1.0 + SLACK


def test_a_body_shorter_than_announced_is_not_taken_for_whole(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(post("/v1/images/edits", "Content-Length: 10") + b"abc")
        assert code(one(connection)) == (408, "request_timeout")


def test_a_body_longer_than_announced_is_no_request(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(post("/v1/images/edits", "Content-Length: 3") + b"abc, and more of it\r\n\r\n")
        found = rest(connection)
    assert b'{"got":3}' in found
    assert found.count(b"HTTP/1.1 200") == 1 and b"HTTP/1.1 400" in found
    assert b'"code": "invalid_request"' in found


def test_an_encoded_body_is_refused(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(post("/v1/images/edits", "Content-Length: 3", "Content-Encoding: gzip") + b"abc")
        answer = one(connection)
    assert code(answer) == (415, "unsupported_content_encoding")
    assert answer[2]["error"]["message"] == "the body is encoded with gzip; send it as it is"


@pytest.mark.parametrize(("size", "piece"), [(40_000, 40_100), (300_000, 300_100), (40_000, 16_000)])
def test_huge_headers_are_refused(port: int, size: int, piece: int) -> None:
    with connected(port) as connection:
        raw = head("GET", "/", "X-Long: " + "x" * size)
        for start in range(0, len(raw), piece):
            connection.sendall(raw[start : start + piece])
            time.sleep(0.02)
        answer = one(connection)
    assert code(answer) == (431, "headers_too_large")
    assert_strict(answer)


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_gets_our_error_body(port: int, text: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(text)
        status, headers, body = one(connection)
        assert status in (400, 501)
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert headers["connection"] == "close"
        assert_strict((status, headers, body))
        assert rest(connection) == b""


def test_what_never_became_a_request_is_counted_and_logged_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level("INFO", "enlarger.service"):
        record_refusal(metrics, "an-id", Problem(431, "headers_too_large", "too large"))
    assert metrics.requests_rejected.labels("headers_too_large")._value.get() == 1
    assert metrics.requests.labels("other", "431")._value.get() == 1
    (line,) = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert (line["id"], line["status"], line["code"]) == ("an-id", 431, "headers_too_large")


def test_a_connection_serves_several_requests_one_after_another_and_at_once(port: int) -> None:
    with connected(port) as connection:
        for body in (b"a", b"bc", b"def"):
            connection.sendall(post("/v1/images/edits", f"Content-Length: {len(body)}") + body)
            assert one(connection)[2] == {"got": len(body)}
        both = post("/v1/images/edits", "Content-Length: 2") + b"ab" + head("GET", "/", "Connection: close")
        connection.sendall(both)
        assert rest(connection).count(b"HTTP/1.1 200") == 2


def test_a_client_that_asks_first_sends_nothing_in_vain(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(post("/v1/images/edits", "Content-Length: 4", "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"abcd")
        assert one(connection)[2] == {"got": 4}
    with connected(port) as connection:
        connection.sendall(post("/v1/images/edits", f"Content-Length: {3 * MIB}", "Expect: 100-continue"))
        assert one(connection)[0] == 413
        assert rest(connection) == b""
