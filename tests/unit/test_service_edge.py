"""The edge of the service: hosts, origins, keys, limits, errors, ids and the log, without a network; and its end."""

import asyncio
import errno
import http.client
import io
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request

from enlarger.errors import InputError
from enlarger.service.jobs.admission import Reservation, Reservations
from enlarger.service.logging_config import JsonFormatter, log_event
from enlarger.service.metrics import Metrics
from enlarger.service.middleware import stack
from enlarger.service.middleware.api_keys import generate_key, hash_key
from enlarger.service.middleware.asgi import RequestHead
from enlarger.service.middleware.cors import AllowedOrigins, normalize_origin
from enlarger.service.middleware.open_requests import OpenRequests
from enlarger.service.middleware.stack import client_timeout, middleware_stack
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.server import bind_socket, server_url
from enlarger.service.settings import MIB, Bounds, Settings

KEY, HASH = generate_key()
ID = "A" * 22
POSTS = ("/v1/images/upscale", "/v1/images/generations", "/v1/images/edits", "/v1/jobs/x/cancel")


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def code(self) -> str:
        return json.loads(self.body)["error"]["code"]

    @property
    def message(self) -> str:
        return json.loads(self.body)["error"]["message"]


@dataclass
class Seen:
    """What an application behind the guard was given."""

    state: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""
    calls: int = 0


async def unknown(owner: str, idempotency_key: str) -> bool:
    return False


def roomy(owner: str, patience: float | None) -> Reservation:
    return Reservations().reserve(owner)


def send_request(
    settings: Settings,
    method: str = "GET",
    path: str = "/v1/models",
    headers: Mapping[str, str] | list[tuple[str, str]] = {},  # noqa: B006  never changed
    body: bytes = b"",
    *,
    app: Any = None,
    room: Any = roomy,
    known: tuple[str, str] | None = None,
    metrics: Metrics | None = None,
    pieces: int = 1,
    server: str = "127.0.0.1",
    scheme: str = "http",
) -> tuple[Answer, Seen]:
    """One request through the guard. A Host is added where there is none."""
    given = list(headers.items()) if isinstance(headers, Mapping) else headers
    if not any(name.lower() == "host" for name, _ in given):
        given = [("host", "localhost:8997"), *given]
    names = {name.lower() for name, _ in given}
    if body and not names & {"content-length", "transfer-encoding"}:
        given = [*given, ("content-length", str(len(body)))]
    size = max(-(-len(body) // pieces), 1)
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    answer, seen = Answer(), Seen()

    async def receive() -> Any:
        if not parts:
            return {"type": "http.disconnect"}
        await asyncio.sleep(0)
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message["body"]

    async def plain_app(scope: Any, receive: Any, send: Any) -> None:
        seen.calls += 1
        seen.body = await Request(scope, receive).body()
        seen.state = dict(scope["state"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"prompt=secret",
        "root_path": "",
        "scheme": scheme,
        "server": (server, 8997),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given],
    }

    async def is_known(owner: str, key: str) -> bool:
        return (owner, key) == known

    counted = Metrics() if metrics is None else metrics
    outside = middleware_stack(plain_app if app is None else app, settings, counted, room, is_known)
    asyncio.run(outside(scope, receive, send))
    return answer, seen


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path)


def made(tmp_path: Path, **values: Any) -> Settings:
    return Settings(data=tmp_path, **values)


# Hosts


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:8997", "[::1]:8997", "[::1]"])
def test_names_of_this_machine_are_allowed_with_any_port(settings: Settings, host: str) -> None:
    assert send_request(settings, headers={"Host": host})[0].status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8997", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b", "localhost:x", "0.0.0.0:8997",
     "localhost:8997@evil.example", "[::2]", "10.0.0.1", "localhost.", "127.1", "2130706433"],
)  # fmt: skip
def test_other_names_are_refused(settings: Settings, host: str) -> None:
    answer, seen = send_request(settings, headers={"Host": host})
    assert (answer.status, answer.code, seen.calls) == (403, "host_not_allowed", 0)


def test_a_host_is_given_once(settings: Settings) -> None:
    answer, _ = send_request(settings, headers=[("Host", "localhost"), ("Host", "localhost")])
    assert (answer.code, answer.message) == ("host_not_allowed", "expected one Host header, found 2")
    assert (
        "'evil.example' is no name of this service; add it to hosts"
        in send_request(settings, headers={"Host": "evil.example:1"})[0].message
    )


def test_a_public_service_answers_to_its_names_its_address_and_this_machine(tmp_path: Path) -> None:
    public = made(tmp_path, host="0.0.0.0", insecure_no_auth=True, hosts=("Pictures.example", "one.example:99"))
    good = ("pictures.example", "pictures.example:443", "one.example:99", "localhost", "192.0.2.7:8997")
    bad = ("one.example", "other.example", "192.0.2.8")
    answers = {host: send_request(public, headers={"Host": host}, server="192.0.2.7")[0].status for host in good + bad}
    assert answers == dict.fromkeys(good, 200) | dict.fromkeys(bad, 403)
    exact = made(tmp_path, host="192.0.2.7", insecure_no_auth=True)
    assert send_request(exact, headers={"Host": "192.0.2.7:8997"}, server="192.0.2.7")[0].status == 200


def test_any_host_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hosts has '\*', and there is no key; name the hosts, or make a key"):
        send_request(made(tmp_path, hosts=("*",)))
    anyone = made(tmp_path, hosts=("*",), keys=(HASH,))
    assert send_request(anyone, headers={"Host": "any.example", "X-API-Key": KEY})[0].status == 200
    assert send_request(anyone, headers={"Host": "any.example"})[0].status == 401


# Origins


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:3000"}, {"Origin": ""},
     {"Origin": "https://localhost:8997"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
     {"Origin": "http://localhost:8997.evil.example"}],
)  # fmt: skip
def test_a_foreign_page_changes_nothing(settings: Settings, path: str, headers: dict[str, str]) -> None:
    answer, seen = send_request(settings, "POST", path, headers | {"Content-Type": "multipart/form-data"}, b"x")
    assert (answer.status, answer.code, seen.calls) == (403, "origin_not_allowed", 0)
    assert "add it to origins to allow it" in answer.message


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "TRACE"])
def test_every_unsafe_method_is_checked(settings: Settings, method: str) -> None:
    assert send_request(settings, method, "/v1/jobs/x", {"Origin": "http://evil.example"})[0].status == 403


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "http://localhost:8997"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}]
)
def test_the_own_page_and_programs_may(settings: Settings, headers: dict[str, str]) -> None:
    assert send_request(settings, "POST", POSTS[0], headers)[0].status == 200


def test_the_own_origin_behind_a_proxy_is_that_of_its_scheme(settings: Settings) -> None:
    headers = {"Host": "localhost", "Origin": "https://localhost"}
    assert send_request(settings, "POST", POSTS[0], headers, scheme="https")[0].status == 200
    assert normalize_origin("HTTPS://A.example:443/") == normalize_origin("https://a.example")
    assert normalize_origin("http://a.example:443") == "http://a.example:443"


def test_a_foreign_page_reads_nothing_of_the_api(settings: Settings) -> None:
    cross = {"Sec-Fetch-Site": "cross-site"}
    opened = cross | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    result = f"/v1/images/{ID}/content"
    asked = {
        ("/v1/models", "fetched"): send_request(settings, path="/v1/models", headers=cross)[0].status,
        ("/v1/models", "opened"): send_request(settings, path="/v1/models", headers=opened)[0].status,
        (result, "embedded"): send_request(settings, path=result, headers=cross)[0].status,
        (result, "opened"): send_request(settings, path=result, headers=opened)[0].status,
        ("/", "opened"): send_request(settings, path="/", headers=opened)[0].status,
    }
    assert list(asked.values()) == [403, 403, 403, 200, 200]


def test_a_listed_origin_may_and_is_told_so(tmp_path: Path) -> None:
    friendly = made(tmp_path, origins=("https://app.example/",), keys=(HASH,))
    headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    answer, _ = send_request(friendly, "POST", POSTS[0], headers | {"Authorization": f"Bearer {KEY}"})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["vary"] == "Origin"
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    refused, _ = send_request(friendly, "POST", POSTS[0], headers)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    assert send_request(friendly, "GET", "/v1/models", headers | {"X-API-Key": KEY})[0].status == 200
    foreign, _ = send_request(friendly, "POST", POSTS[0], {"Origin": "https://other.example", "X-API-Key": KEY})
    assert (foreign.status, "access-control-allow-origin" in foreign.headers) == (403, False)
    assert foreign.headers["vary"] == "Origin"


def test_a_page_of_a_listed_origin_may_show_a_result(settings: Settings, tmp_path: Path) -> None:
    friendly = made(tmp_path, origins=("https://app.example",), keys=(HASH,))
    result = f"/v1/images/{ID}/content"
    shown = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}  # without Origin
    answer, _ = send_request(friendly, path=result, headers=shown)
    assert (answer.status, answer.headers["cross-origin-resource-policy"]) == (200, "cross-origin")
    other, _ = send_request(friendly, path="/v1/models", headers=shown | {"X-API-Key": KEY})
    assert (other.status, other.headers["cross-origin-resource-policy"]) == (403, "same-origin")
    assert send_request(friendly, path=result, headers=shown | {"Sec-Fetch-Dest": "script"})[0].status == 403
    assert send_request(settings, path=result, headers=shown)[0].status == 403, "there are no other pages"


def test_a_browser_may_ask_beforehand_for_a_listed_origin(tmp_path: Path) -> None:
    friendly = made(tmp_path, origins=("https://app.example",), keys=(HASH,))
    asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    answer, seen = send_request(friendly, "OPTIONS", POSTS[0], asks)
    assert (answer.status, answer.body, seen.calls) == (204, b"", 0)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    allowed = answer.headers["access-control-allow-headers"]
    assert all(name in allowed for name in ("Authorization", "Content-Type", "Prefer", "Idempotency-Key", "X-API-Key"))
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert int(answer.headers["access-control-max-age"]) > 0
    other, _ = send_request(friendly, "OPTIONS", POSTS[0], asks | {"Origin": "https://other.example"})
    assert (other.status, other.code) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["*", "null"])
def test_origins_are_named_one_by_one(tmp_path: Path, origin: str) -> None:
    with pytest.raises(InputError, match=r"origins has '\*' or 'null', which stand for every page"):
        AllowedOrigins.from_settings(made(tmp_path, origins=(origin,)))


# Keys


@pytest.fixture
def locked(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, keys=(hash_key("another"), HASH, hash_key("third")))


def test_a_new_key_is_long_and_kept_as_its_hash() -> None:
    key, kept = generate_key()
    assert key.startswith("enl_") and len(key) == 4 + 43
    assert kept == "sha256:" + sha256(key.encode()).hexdigest()
    assert generate_key()[0] != key


@pytest.mark.parametrize(
    "headers",
    [[("Authorization", f"Bearer {KEY}")], [("Authorization", f"bEARER  {KEY} ")], [("X-API-Key", KEY)],
     [("Authorization", "Basic abc"), ("Authorization", f"Bearer {KEY}")],
     [("Authorization", "Bearer wrong"), ("X-API-Key", KEY)]],
)  # fmt: skip
def test_a_key_comes_in_either_header(locked: Settings, headers: list[tuple[str, str]]) -> None:
    answer, seen = send_request(locked, headers=headers)
    assert answer.status == 200
    assert seen.state["owner"] == HASH.removeprefix("sha256:")[:16]


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"},
     {"X-API-Key": HASH}, {"X-API-Key": KEY[:-1]}, {"Authorization": "Bearer"}, {"Authorization": "Bearer \xff"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/info", "/openapi.json", "/v1/jobs", "/page", "//"])
def test_other_keys_are_refused(locked: Settings, headers: dict[str, str], path: str) -> None:
    answer, seen = send_request(locked, path=path, headers=headers)
    assert (answer.status, answer.code, seen.calls) == (401, "invalid_api_key", 0)
    assert answer.headers["www-authenticate"] == 'Bearer realm="enlarger"'


def test_the_error_says_whether_a_key_was_missing_or_wrong(locked: Settings) -> None:
    assert (
        "this needs a key and the request has none; send Authorization: Bearer KEY" in send_request(locked)[0].message
    )
    assert "the key is none of this service's" in send_request(locked, headers={"X-API-Key": "x"})[0].message


@pytest.mark.parametrize(
    "path", ["/", "/page/app.js", "/healthz", "/readyz", "/health", "/v1/", f"/v1/images/{ID}/content"]
)
def test_health_the_page_and_results_need_no_key(locked: Settings, path: str) -> None:
    assert send_request(locked, path=path)[0].status == 200
    assert send_request(locked, "POST", path)[0].status == 401


def test_without_keys_any_key_will_do(settings: Settings) -> None:
    answer, seen = send_request(settings, headers={"Authorization": "Bearer none"})
    assert (answer.status, seen.state["owner"]) == (200, "")


# Bodies and room


def test_a_body_reaches_the_application_whole(settings: Settings) -> None:
    for size, pieces in ((0, 1), (1, 1), (5 * MIB, 1), (5 * MIB, 100), (MIB, 3)):
        body = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
        for headers in ({}, {"Transfer-Encoding": "chunked"}):
            for kind in ("application/json", "multipart/form-data; boundary=x"):
                _, seen = send_request(
                    settings, "POST", "/v1/images/edits", headers | {"Content-Type": kind}, body, pieces=pieces
                )
                assert seen.body == body


def test_a_body_over_the_limit_is_refused_whatever_the_application_makes_of_it(tmp_path: Path) -> None:
    small = made(tmp_path, bounds=Bounds(body=MIB, json_body=1000))

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        status = 200
        try:
            await Request(scope, receive).body()
        except Exception:  # noqa: BLE001  as FastAPI does
            status = 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"cannot read", "more_body": False})

    for app in (None, deaf):
        for path, size in (("/v1/images/edits", MIB), ("/v1/images/generations", 1000)):
            for headers in ({}, {"Transfer-Encoding": "chunked"}):
                answer, _ = send_request(small, "POST", path, headers, b"x" * (size + 1), app=app, pieces=7)
                assert (answer.status, answer.code) == (413, "payload_too_large")
                assert answer.message == f"the body is larger than {size} bytes, the most that is taken here"
                assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
                assert send_request(small, "POST", path, headers, b"x" * size, app=app, pieces=7)[0].status == 200


def test_a_body_is_taken_only_where_the_route_takes_one(settings: Settings) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for method, path in (("GET", "/healthz"), ("GET", "/v1/images/upscale"), ("POST", "/v1/jobs/x/cancel")):
        answer, seen = send_request(
            settings, method, path, form | {"Transfer-Encoding": "chunked"}, b"x" * MIB, pieces=9
        )
        assert (answer.status, answer.code, seen.calls) == (413, "payload_too_large", 0)
        answer, seen = send_request(settings, method, path, form, b"x" * MIB)
        assert (answer.status, seen.calls) == (413, 0)
        answer, seen = send_request(settings, method, path, {}, b"{}")
        assert (answer.status, seen.body) == (200, b"")


@pytest.mark.parametrize(
    "kind",
    ["charset=punycode", "CHARSET=undefined", 'charset="idna"', "charset*=utf-16''x", "boundary=x;charset=utf-8-sig",
     "charset=", "charset=utf-8; charset=zlib"],
)  # fmt: skip
@pytest.mark.parametrize("media_type", ["multipart/form-data", "application/json"])
def test_text_is_utf_8_and_no_other_codec_is_looked_up(settings: Settings, kind: str, media_type: str) -> None:
    answer, seen = send_request(settings, "POST", POSTS[0], {"Content-Type": f"{media_type}; {kind}"}, b"x")
    assert (answer.status, answer.code, seen.calls) == (415, "unsupported_media_type", 0)
    assert "expected utf-8" in answer.message
    for good in ("charset=utf-8", 'Charset = "UTF-8"', "charset=utf8; boundary=x", "boundary=charset"):
        assert (
            send_request(settings, "POST", POSTS[0], {"Content-Type": f"{media_type}; {good}"}, b"x")[0].status == 200
        )


def test_a_request_has_one_content_type(settings: Settings) -> None:
    two = [("Content-Type", "application/json"), ("Content-Type", "text/plain; charset=hex")]
    answer, _ = send_request(settings, "POST", POSTS[0], two, b"x")
    assert (answer.status, answer.message) == (400, "found 2 Content-Type headers, expected one")


def test_a_key_has_only_so_many_requests_under_way() -> None:
    requests = OpenRequests(2)
    with requests.count("a"), requests.count("a"), requests.count("b"), requests.count(""):
        with pytest.raises(ProblemError, match="2 requests of this key are under way") as refused, requests.count("a"):
            pass
        assert (refused.value.problem.status, refused.value.problem.code) == (429, "rate_limit_exceeded")
    with requests.count("a"):
        pass


@pytest.mark.parametrize("encoding", ["gzip", "identity, br", "GZIP"])
def test_an_encoded_body_is_refused(settings: Settings, encoding: str) -> None:
    answer, seen = send_request(settings, "POST", POSTS[0], {"Content-Encoding": encoding}, b"x")
    assert (answer.status, answer.code, seen.calls) == (415, "unsupported_content_encoding", 0)
    assert send_request(settings, "POST", POSTS[0], {"Content-Encoding": "identity"}, b"x")[0].status == 200


def test_work_is_refused_before_its_body_is_read(settings: Settings) -> None:
    asked: list[tuple[str, float | None]] = []

    def full(owner: str, patience: float | None) -> None:
        asked.append((owner, patience))
        raise problem_error(429, "queue_full", "16 jobs wait", retry_after=7.2)

    answer, seen = send_request(settings, "POST", POSTS[0], {"x-stainless-read-timeout": "600"}, b"x" * MIB, room=full)
    assert (answer.status, answer.code, seen.calls) == (429, "queue_full", 0)
    assert (answer.headers["retry-after"], answer.headers["connection"]) == ("7", "close")
    assert asked == [("", 600.0)]
    for method, path in (("GET", POSTS[0]), ("POST", "/v1/jobs/x/cancel"), ("POST", "/v1/images/upscale/")):
        assert send_request(settings, method, path, room=full)[0].status == 200


def places(count: int) -> tuple[Any, list[Reservation]]:
    """Room for so many that ask, and what they were given."""
    given: list[Reservation] = []

    def reserve(owner: str, patience: float | None) -> Reservation:
        if len(given) == count:
            raise problem_error(429, "queue_full", "16 jobs wait", retry_after=1)
        given.append(roomy(owner, patience))
        return given[-1]

    return reserve, given


def test_a_place_is_held_from_the_head_of_a_request_to_its_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "ARRIVAL_SECONDS", 60)
    reserve, given = places(1)
    answer, seen = send_request(settings, "POST", POSTS[2], body=b"x" * MIB, room=reserve, pieces=5)
    assert (answer.status, seen.state["reservation"]) == (200, given[0])
    assert not given[0].is_held


def test_a_repeated_request_needs_no_place(settings: Settings) -> None:
    for key, status in (("mine", 200), ("other", 429)):
        headers = {"Idempotency-Key": key}
        answer, seen = send_request(settings, "POST", POSTS[2], headers, b"x", room=places(0)[0], known=("", "mine"))
        assert (answer.status, seen.calls) == (status, int(status == 200)) and "reservation" not in getattr(
            seen, "state", {}
        )


def test_a_body_that_takes_its_time_loses_its_place_and_must_find_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "ARRIVAL_SECONDS", 0)
    reserve, given = places(2)
    answer, seen = send_request(settings, "POST", POSTS[2], body=b"x" * MIB, room=reserve, pieces=5)
    assert (answer.status, len(given), seen.state["reservation"]) == (200, 2, given[1])
    assert not any(place.is_held for place in given)
    answer, _ = send_request(settings, "POST", POSTS[2], body=b"x" * MIB, room=places(1)[0], pieces=5)
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "queue_full", "1")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("10", 10.0), ("0.5", 0.5), ("nan", None), ("inf", None), ("-1", None), ("0", None), ("x", None), ("", None)],
)
def test_the_patience_of_a_client_is_a_number_of_seconds(given: str, expected: float | None) -> None:
    assert client_timeout(RequestHead("POST", "/", "http", {"x-stainless-read-timeout": (given,)})) == expected


# Answers


def test_every_answer_has_an_id_and_is_strict(settings: Settings) -> None:
    for path in ("/v1/models", "/"):
        headers = send_request(settings, path=path)[0].headers
        assert len(headers["x-request-id"]) == 32
        assert headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' blob: data:;")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
        assert headers.get("cache-control") == ("no-store" if path == "/v1/models" else None)


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_X", True), ("a\nb", False), ("x" * 65, False), ("", False)])
def test_the_id_of_a_client_is_kept_if_it_is_one(settings: Settings, given: str, kept: bool) -> None:
    answer, seen = send_request(settings, headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) is kept
    assert seen.state["request_id"] == answer.headers["x-request-id"]


def failing(error: Exception) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    return app


def test_what_nobody_foresaw_is_a_500_in_our_form(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    api = FastAPI()

    @api.get("/v1/models")
    def broken() -> None:
        raise KeyError("secret prompt")

    for app in (failing(KeyError("secret prompt")), api):
        caplog.clear()
        answer, _ = send_request(settings, app=app, headers={"X-Request-Id": "one"})
        assert (answer.status, answer.code) == (500, "internal")
        assert answer.message == "unexpected KeyError; the log of the service says where (request one)"
        assert answer.headers["x-should-retry"] == "false"
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert [record.getMessage() for record in errors] == ["request failed"]


def test_a_full_disk_is_told(settings: Settings) -> None:
    answer, _ = send_request(settings, app=failing(OSError(errno.ENOSPC, "no space")))
    assert (answer.status, answer.code) == (500, "storage_full")
    assert answer.message == "the disk of the service is full; try again when there is room"


def test_headers_that_came_in_one_piece_have_a_limit_too(settings: Settings) -> None:
    answer, _ = send_request(settings, headers={"X-Long": "x" * (33 << 10)})
    assert (answer.status, answer.code) == (431, "headers_too_large")


def test_websockets_are_closed_and_the_lifespan_passes(settings: Settings) -> None:
    sent, seen = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message["type"])

    outside = middleware_stack(app, settings, Metrics(), roomy, unknown)
    for kind in ("websocket", "lifespan"):
        asyncio.run(outside({"type": kind}, None, send))  # type: ignore[arg-type]  # neither is read from
    assert (seen, sent) == (["lifespan"], ["websocket.close"])


# Metrics and log


def test_requests_are_counted_by_the_template_of_their_route(settings: Settings) -> None:
    router, outer, metrics = APIRouter(prefix="/v1"), APIRouter(), Metrics()

    @router.get("/jobs/{id}")
    async def job(id: str) -> str:
        return id

    outer.include_router(router)
    api = FastAPI()
    api.include_router(outer)
    for path in ("/v1/jobs/one", "/v1/jobs/two", "/v1/secret", "/wp-admin"):
        send_request(settings, path=path, app=api, metrics=metrics)
    send_request(settings, "POST", POSTS[0], {"Origin": "http://evil.example"}, metrics=metrics)
    text = metrics.render().decode()
    assert 'enlarger_requests_total{route="/v1/jobs/{id}",status="200"} 2.0' in text
    assert 'enlarger_requests_total{route="other",status="404"} 2.0' in text
    assert 'enlarger_requests_total{route="/v1/images/upscale",status="403"} 1.0' in text
    assert 'enlarger_requests_rejected_total{reason="origin_not_allowed"} 1.0' in text
    assert 'enlarger_request_failures_total{code="origin_not_allowed"} 1.0' in text
    assert "secret" not in text and "wp-admin" not in text


def test_a_client_that_left_is_counted_as_such(settings: Settings) -> None:
    metrics = Metrics()

    async def patient(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    send_request(settings, "POST", POSTS[0], body=b"x", app=patient, metrics=metrics)
    assert 'enlarger_request_failures_total{code="client_closed"} 1.0' in metrics.render().decode()


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("enlarger")
    handler.setFormatter(JsonFormatter())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_a_request_is_one_line_of_json_without_what_it_says(settings: Settings, lines: io.StringIO) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "one", "User-Agent": "a\n{}"}
    send_request(settings, path="/v1/secret\nname", headers=headers)
    send_request(settings, "POST", POSTS[0], headers | {"Origin": "http://evil.example"}, b"prompt")
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line.pop("seconds") < 5 and "time" in line for line in found] == [True, True]
    same = {"level": "info", "event": "request", "id": "one"}
    times = [line.pop("time") for line in found]
    assert all(time.endswith("+00:00") for time in times)
    assert found == [
        same | {"method": "GET", "route": "other", "status": 200},
        same | {"method": "POST", "route": POSTS[0], "status": 403, "code": "origin_not_allowed"},
    ]
    assert not any(word in lines.getvalue() for word in ("secret", KEY, "prompt", "evil"))


def test_probes_are_not_worth_a_line_and_no_rejections(settings: Settings, lines: io.StringIO) -> None:
    api, metrics = FastAPI(), Metrics()

    @api.get("/readyz")
    def ready() -> None:
        raise HTTPException(503)

    assert send_request(settings, path="/readyz", app=api, metrics=metrics)[0].status == 503
    assert lines.getvalue() == ""
    text = metrics.render().decode()
    assert 'enlarger_requests_total{route="/readyz",status="503"} 1.0' in text
    assert "enlarger_requests_rejected_total{" not in text


def test_an_exception_is_told_by_type_and_place_but_not_by_its_text(lines: io.StringIO) -> None:
    try:
        int("secret")
    except ValueError as error:
        log_event("went\nwrong \x1b[31m\u2028", logging.ERROR, error, id="one")
        record = logging.LogRecord("x", logging.ERROR, "", 0, "wrong", None, (type(error), error, error.__traceback__))
    [line] = lines.getvalue().splitlines()
    found = json.loads(line)
    assert (found["event"], found["error"], found["id"]) == ("went\nwrong \x1b[31m\u2028", "ValueError", "one")
    assert "test_service_edge.py" in found["where"][0]
    assert "secret" not in line and line.isascii()
    assert (
        json.loads(JsonFormatter(include_error_text=True).format(record))["text"]
        == "invalid literal for int() with base 10: 'secret'"
    )


# The server


def test_a_taken_port_is_an_error_in_one_line() -> None:
    with bind_socket("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        assert server_url("127.0.0.1", first) == f"http://127.0.0.1:{port}"
        assert server_url("0.0.0.0", first) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError) as caught:
            bind_socket("127.0.0.1", port)
    assert str(caught.value) == (
        f"port {port} of 127.0.0.1 is taken; end what listens there, or give another port (0 picks a free one)"
    )


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(InputError, match=r"cannot listen on 192.0.2.1: .*; expected an address of this machine"):
        bind_socket("192.0.2.1", 0)


PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from fastapi import FastAPI
from enlarger.errors import InputError
from enlarger.service.metrics import Metrics
from enlarger.service.server import serve
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.jobs.admission import Reservations
from enlarger.service.settings import Settings

class Queue:
    draining = False
    def reserve(self, owner, max_wait=None):
        if self.draining:
            raise problem_error(503, "draining", "the service is stopping", retry_after=5)
        return Reservations().reserve(owner)
    async def is_known(self, owner, key):
        return False
    async def drain(self):
        self.draining = True
        while (Path(sys.argv[1]) / "busy").exists():
            await asyncio.sleep(0.01)

@asynccontextmanager
async def lifespan(app):
    if len(sys.argv) > 2:
        raise InputError(sys.argv[2])
    yield
    await queue.drain()
    print("closed, torch" if "torch" in sys.modules else "closed", flush=True)

queue = Queue()
app = FastAPI(lifespan=lifespan)
app.state.service = SimpleNamespace(jobs=queue, metrics=Metrics())

@app.get("/healthz")
async def live():
    return {"draining": queue.draining}

@app.post("/v1/images/upscale")
async def work():
    return {}

try:
    sys.exit(serve(Settings(port=0, data=sys.argv[1]), app, lambda url: print(url, flush=True)))
except InputError as error:
    sys.exit(f"error: {error}")
"""


@dataclass
class Child:
    process: subprocess.Popen[str]
    port: int

    def send_request(self, method: str, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Child(process, int(process.stdout.readline().rpartition(":")[2]))
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_work_end_while_everything_else_is_answered(
    child: Child, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "busy").touch()
    assert child.send_request("GET", "/healthz") == (200, {"draining": False})
    assert child.send_request("POST", "/v1/images/upscale") == (200, {})
    idle = socket.create_connection(("127.0.0.1", child.port))
    child.process.send_signal(number)
    end = time.monotonic() + 5
    while child.send_request("GET", "/healthz") != (200, {"draining": True}):
        assert time.monotonic() < end
    status, body = child.send_request("POST", "/v1/images/upscale")
    assert (status, body["error"]["code"]) == (503, "draining")
    (tmp_path / "busy").unlink()
    out, errors = child.process.communicate(timeout=10)
    assert (child.process.returncode, out) == (0, "closed\n")
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert [event for event in events if event != "request"] == ["serving", "draining", "drained", "stopped"]
    idle.close()


def test_a_second_signal_ends_it_at_once(child: Child, tmp_path: Path) -> None:
    (tmp_path / "busy").touch()
    child.process.terminate()
    end = time.monotonic() + 5
    while child.send_request("GET", "/healthz") != (200, {"draining": True}):
        assert time.monotonic() < end
    child.process.terminate()
    assert child.process.wait(2) == 128 + signal.SIGTERM


def test_an_input_error_at_the_start_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "the folder is in use"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: the folder is in use\n")


def test_head_is_answered_as_get_is_without_a_body_and_without_an_end_to_wait_for() -> None:
    was_stopped = False

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal was_stopped
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            was_stopped = True
            raise

    answer, _ = send_request(Settings(), "HEAD", app=endless)
    assert (answer.status, answer.headers["x-a"], answer.body, was_stopped) == (200, "1", b"", True)
    assert send_request(Settings(), "HEAD")[0].status == 200
