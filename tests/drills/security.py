"""Attacks: from other web pages, without a key, through URLs to fetch, and through what users may name."""

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx2
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.drills import jobs, wire
from tests.drills.figures import Figure, none, share
from tests.drills.payloads import LINES, SCRIPTS
from tests.support.forbidden_urls import FORBIDDEN
from tests.support.service import Served, until

KEY = "drill-key-0123456789abcdef"
HASHED = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
SECRET = "a prompt that nobody may read in a log"
EVIL = "https://evil.example"


def strangers(served: Served, rounds: int = 1) -> list[Figure]:
    """Requests that a browser sends for another page, or for a name that was bound anew; and hosts that are right."""
    host = jobs.host_of(served)
    port = host.rpartition(":")[2]
    picture = [wire.Part("image", wire.png(8, 8))]

    def posted(name: str = host, **headers: str) -> wire.Answer:
        return wire.send_request(served.url, wire.form(wire.UPSCALE, name, {"model": "bundled"}, picture, **headers))

    refused = [
        posted(Origin=EVIL),
        posted(Origin=EVIL, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors"),
        posted(Origin="null"),
        posted(Origin="null", Sec_Fetch_Site="cross-site"),
        posted(Sec_Fetch_Site="cross-site"),
        posted(Sec_Fetch_Site="same-site", Origin="http://localhost:1"),
        posted(Origin=f"http://{host}.evil.example"),
        posted(Origin=f"http://evil.example:{port}"),
        posted(Origin=f"https://{host}"),
        wire.send_request(
            served.url, wire.request("OPTIONS", wire.UPSCALE, host, Origin=EVIL, Access_Control_Request_Method="POST")
        ),
        wire.send_request(served.url, wire.request("GET", "/v1/jobs", host, Sec_Fetch_Site="cross-site", Origin=EVIL)),
        wire.send_request(served.url, wire.request("DELETE", f"/v1/jobs/{'a' * 22}", host, Origin=EVIL)),
    ]
    names = (
        "evil.example", f"evil.example:{port}", f"localhost.evil.example:{port}", f"127.0.0.1.evil.example:{port}",
        f"evil.example@127.0.0.1:{port}", f"127.0.0.1:{port}@evil.example", "0.0.0.0", f"[::ffff:7f00:1]:{port}", "",
    )  # fmt: skip
    rebound = [posted(name) for name in names]
    rebound += [
        wire.send_request(served.url, wire.request("GET", path, "evil.example")) for path in ("/", "/v1/jobs", "/info")
    ]
    allowed = [posted(f"localhost:{port}"), posted(Origin=f"http://{host}", Sec_Fetch_Site="same-origin"), posted()]
    return [
        share("requests of other pages: 403", sum(a.status == 403 for a in refused), len(refused)),
        none("their answers that let another page read them", sum(opens(a) for a in [*refused, *rebound])),
        share(
            "names in Host that are not ours: 400, 403 or 421",
            sum(a.status in (400, 403, 421) for a in rebound),
            len(rebound),
        ),
        share("our own page and names: 200", sum(a.status == 200 for a in allowed), len(allowed)),
    ]


def opens(answer: wire.Answer) -> bool:
    return any(name.startswith("access-control-allow") for name in answer.headers)


def keys(served: Served, rounds: int = 1) -> list[Figure]:
    """A service with keys: requests without one, with a wrong one, with the right one."""
    host = jobs.host_of(served)
    wrong = ("", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
             f"Bearer {HASHED}", f"Bearer {KEY.upper()}", f"Bearer {KEY}\t{KEY}")  # fmt: skip
    calls = [("GET", "/v1/models"), ("GET", "/v1/jobs"), ("GET", "/metrics"), ("GET", "/info"), ("POST", wire.GENERATE),
             ("DELETE", f"/v1/jobs/{'a' * 22}"), ("GET", "/openapi.json")]  # fmt: skip

    def call(method: str, path: str, **headers: str) -> wire.Answer:
        if method != "POST":
            return wire.send_request(served.url, wire.request(method, path, host, **headers))
        return wire.send_request(
            served.url, wire.send_json(path, host, jobs.generation(num_inference_steps=1), **headers)
        )

    without = [call(*each) for each in calls]
    bad = [call("POST", wire.GENERATE, Authorization=each) for each in wrong if each]
    bad += [call("GET", "/v1/models", X_API_Key=each) for each in wrong if each not in ("", KEY)]
    good = [call("POST", wire.GENERATE, Authorization=f"Bearer {KEY}"), call("GET", "/v1/models", X_API_Key=KEY)]
    refused = [*without, *bad]
    named = sum(a.status == 401 and a.code == "invalid_api_key" and "www-authenticate" in a.headers for a in refused)
    log = served.log.read_text(errors="replace")
    return [
        share("without a key, or with a wrong one: 401 invalid_api_key", named, len(refused)),
        share("with the key: 200", sum(a.status == 200 for a in good), len(good)),
        none("times that a key is in the log", sum(log.count(text) for text in (KEY, HASHED, "Bearer"))),
    ]


def addresses(served: Served, rounds: int = 1) -> list[Figure]:
    """A service that fetches URLs: those of its own machine and network, in every spelling. Nobody may call."""
    host = jobs.host_of(served)
    with canary() as (port, called):
        urls = [url.replace("PORT", str(port)) for url in FORBIDDEN]
        answers = [
            wire.send_request(
                served.url, wire.send_json(wire.EDIT, host, {"prompt": "a", "images": [{"image_url": url}]})
            )
            for url in urls
        ]
        refused = [a.status == 400 and a.code is not None for a in answers]
        wrong = [f"{url}: {a.status}" for url, a, fine in zip(urls, answers, refused, strict=True) if not fine]
        return [
            share(
                "addresses refused with 400" + (f" (not: {', '.join(wrong)})" if wrong else ""), sum(refused), len(urls)
            ),
            none("connections to a server on this machine", len(called)),
        ]


@contextmanager
def canary() -> Iterator[tuple[int, list[Any]]]:
    """A server that notes who connects."""
    called: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def listen() -> None:
            try:
                while True:
                    connection, whence = door.accept()
                    called.append(whence)
                    connection.close()
            except OSError:
                return

        threading.Thread(target=listen, daemon=True).start()
        yield door.getsockname()[1], called
        door.shutdown(socket.SHUT_RDWR)


def texts(served: Served, count: int) -> list[Figure]:
    """Payloads as prompt, file name, metadata, and wherever else a text may be given: what comes back is no page."""
    answers: list[httpx2.Response] = []
    for payload in SCRIPTS[:count]:
        answers += reported(served, payload)
    pages = [a for a in answers if not inert(a)]
    files = [a.content for a in answers if a.headers["content-type"].startswith("image/")]
    leaks = sum(payload.encode() in content for content in files for payload in NOT_ASKED)
    return [
        Figure("payloads, each as prompt, file name, metadata and more", len(SCRIPTS[:count]), least=min(count, 30)),
        share("answers that a browser takes for data (JSON or picture, nosniff, strict policy)" + said(pages),
              len(answers) - len(pages), len(answers)),
        none("results that hold a file's name or metadata of the upload", leaks),
    ]  # fmt: skip


NOT_ASKED = ("name-of-", "metadata-of-")  # marks before payloads in file names and metadata


def said(answers: list[httpx2.Response]) -> str:
    found = sorted({f"{a.request.url.path}: {a.status_code} {a.headers.get('content-type')}" for a in answers})
    return f" (not: {', '.join(found[:5])})" if found else ""


def reported(served: Served, payload: str) -> list[httpx2.Response]:
    """Everything that comes back for one payload."""
    found = [generated(served, payload), enlarged(served, payload)]
    for id in [answer.json()["id"] for answer in found]:
        done = jobs.wait_for(served, [id])[id]
        found += [jobs.get(served, f"/v1/jobs/{id}")]
        found += [jobs.get(served, each["url"].removeprefix(served.url)) for each in done["result"]["data"]]
    quoted = quote(payload, safe="")
    paths = (f"/v1/models/{quoted}", f"/v1/jobs?status={quoted}", f"/nothing?x={quoted}", "/v1/jobs")
    found += [jobs.get(served, path) for path in paths]
    bodies: tuple[dict[str, Any], ...] = (jobs.generation(model=payload), {payload: payload})
    return [*found, *(jobs.HTTP.post(served.url + wire.GENERATE, json=body) for body in bodies)]


def generated(served: Served, payload: str) -> httpx2.Response:
    values = jobs.generation(prompt=payload, negative_prompt=payload, user=payload, num_inference_steps=1)
    return jobs.HTTP.post(served.url + wire.GENERATE, json=values, headers=jobs.DETACHED)


def enlarged(served: Served, payload: str) -> httpx2.Response:
    """The payload as file name, and in a PNG's texts."""
    info, file = PngInfo(), io.BytesIO()
    info.add_text("Comment", f"{NOT_ASKED[1]}{payload}")
    info.add_itxt("parameters", f"{NOT_ASKED[1]}{payload}")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    body, kind = wire.multipart({"model": "bundled", "user": payload}, [
        wire.Part("image", file.getvalue(), f"{NOT_ASKED[0]}{payload}.png")
    ])  # fmt: skip
    headers = {"Content-Type": kind, **jobs.DETACHED}
    return jobs.HTTP.post(served.url + wire.UPSCALE, content=body, headers=headers)


def inert(answer: httpx2.Response) -> bool:
    """Whether a browser can take an answer for nothing but data."""
    kind = answer.headers.get("content-type", "")
    policy = answer.headers.get("content-security-policy", "")
    return (
        (kind.startswith(("application/json", "image/png", "text/event-stream")))
        and answer.headers.get("x-content-type-options") == "nosniff"
        and "default-src" in policy
        and "unsafe" not in policy
        and answer.status_code < 500
        and NOT_ASKED[0] not in str(answer.headers)
    )


def logs(served: Served, rounds: int = 1) -> list[Figure]:
    """Texts that would forge a line of the log; and what may not be in it at all."""
    host = jobs.host_of(served)
    for text in LINES:
        quoted = "".join(f"%{byte:02X}" for byte in text.encode())
        wire.send_request(
            served.url,
            wire.request("GET", f"/v1/jobs/{quoted}?{quoted}", host, User_Agent=clean(text), X_Request_Id=clean(text)),
        )
        wire.send_request(
            served.url,
            wire.request("GET", "/v1/models", host, Origin=clean(text), Authorization=f"Bearer {clean(text)}"),
        )
        wire.send_request(
            served.url,
            wire.send_json(wire.GENERATE, host, jobs.generation(prompt=text + SECRET, num_inference_steps=1)),
        )
        wire.send_request(served.url, wire.send_json(wire.GENERATE, host, jobs.generation(model=text, prompt=SECRET)))
        part = wire.Part("image", wire.png(8, 8), f"{SECRET}{text}.png")
        wire.send_request(served.url, wire.form(wire.UPSCALE, host, {"model": "bundled", "prompt": SECRET}, [part]))
    until(lambda: jobs.idle(served), 30)
    lines = list(jobs.log_lines(served))
    raw = served.log.read_text(errors="replace")
    return [
        Figure("lines in the log that are JSON", len(lines), least=5 * len(LINES)),
        none("lines that an attacker wrote", sum(line.get("event") == "forged" for line in lines)),
        none("escape codes in the log", raw.count("\x1b")),
        none("times that a prompt or a file's name is in the log", raw.count(SECRET)),
    ]


def clean(text: str) -> str:
    """What of a text can be put into a header at all."""
    return text.replace("\r", "").replace("\n", " ").replace("\x00", "").encode("ascii", "replace").decode()
