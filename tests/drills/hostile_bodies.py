"""Bodies that mean to cost more than they weigh, sent by one key, while another key enlarges small pictures."""

import encodings.aliases
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tests.drills import jobs, wire
from tests.drills.figures import Figure, mebibytes, middle, millis, quantile, seconds, share
from tests.drills.probe import probing
from tests.drills.processes import sampled
from tests.support.service import Served

Request = TypeVar("Request")
MIB = 1 << 20
KEYS = ("drill-key-of-the-hostile-one", "drill-key-of-the-other-one")
HASHES = ["sha256:" + hashlib.sha256(key.encode()).hexdigest() for key in KEYS]
SENDERS = 4
FULL = 300  # bodies; with fewer, on machines that are shared, the time of /healthz is for information
PATHS = ("/healthz", "/", "/v1/models", "/v1/jobs", "/v1/jobs/x/cancel", "/metrics", "/v1/images/upscale", wire.EDIT)
PART = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FORM, JSON = "multipart/form-data; boundary=x", "application/json"
CODECS = sorted({*encodings.aliases.aliases.values(), "undefined", "punycode", "idna", "no-such"})


def hostile_bodies(served: Served, count: int) -> list[Figure]:
    """So many hostile bodies, of every kind in turn."""
    usual = middle([small_picture(served) for _ in range(5)])
    requests, answers = itertools.islice(itertools.cycle(kinds(jobs.host_of(served))), count), list[wire.Answer]()
    with sampled(served.process.pid) as peak, probing(served.url) as health:
        senders = start_senders(SENDERS, requests, lambda raw: answers.append(wire.pour(served.url, [raw], 60)))
        meanwhile = small_pictures(served, senders)
    refused = [answer for answer in answers if 400 <= answer.status < 500 and answer.code is not None]
    return [
        share("refused with 4xx and a code", len(refused), count),
        mebibytes("growth of the server's memory", peak.growth_server, most=32 * MIB),
        millis("/healthz every 20 ms meanwhile, p99", quantile(health, 0.99), most=0.05 if count >= FULL else None),
        Figure("pictures of 8 x 8 of another key meanwhile", len(meanwhile), least=1),
        seconds("one of them before, median", usual),
        seconds("one of them meanwhile, longest", max(meanwhile), most=usual + 2),
    ]


def start_senders(count: int, requests: Iterator[Request], send: Callable[[Request], None]) -> list[threading.Thread]:
    """So many threads that send requests, each the next one, until there are none."""
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                request = next(requests, None)
            if request is None:
                return
            send(request)

    senders = [threading.Thread(target=run) for _ in range(count)]
    for sender in senders:
        sender.start()
    return senders


def small_pictures(served: Served, senders: Sequence[threading.Thread], least: int = 0) -> list[float]:
    """The seconds that small pictures of the other key take while others send, of so many at least."""
    times = list[float]()
    while len(times) < least or any(sender.is_alive() for sender in senders):
        times.append(small_picture(served))
    return times


def small_picture(served: Served) -> float:
    """The seconds that a small picture of the other key takes."""
    part = wire.Part("image", wire.png(8, 8))
    began = time.perf_counter()
    raw = wire.form(wire.UPSCALE, jobs.host_of(served), {"model": "bundled"}, [part], X_API_Key=KEYS[1])
    answer = wire.send_request(served.url, raw)
    assert answer.status == 200, (answer.status, answer.body)
    return time.perf_counter() - began


def kinds(host: str) -> list[bytes]:
    """One request of each kind, whole."""
    return [*json_bodies(host), *forms(host), *charsets(host), *chunked(host)]


def post(host: str, path: str, kind: str, body: bytes) -> bytes:
    return wire.request("POST", path, host, body, Content_Type=kind, X_API_Key=KEYS[0])


def json_bodies(host: str) -> Iterator[bytes]:
    """A million items, deep nesting, names twice, many names, marks, other encodings, long numbers, half texts."""
    many = b'{"prompt":"a","images":[' + b"0," * MIB + b"0]}"
    names = b"{" + b",".join(b'"a%d":0' % i for i in range(100_000)) + b"}"
    twice = b'{"prompt":"a",' + b'"n":1,' * 100_000 + b'"n":1}'
    for body in (
        many, b"[" * (2 * MIB), b'{"a":' * (MIB // 2), names, twice, b"\xef\xbb\xbf{}", '{"n":1}'.encode("utf-16"),
        b'{"n":' + b"9" * MIB + b"}", b'{"a":"' + b'\\"' * MIB, b'{"a":"' + b"\\" * MIB, b"[" + b"[]," * MIB + b"0]",
        b'{"images":[{"image_url":"data:image/png;base64,' + b"!" * (4 * MIB) + b'"}],"prompt":"a"}',
    ):  # fmt: skip
        yield post(host, wire.EDIT, JSON, body)


def forms(host: str) -> Iterator[bytes]:
    """Thousands of parts, files, names and headers; forms that are none."""
    file = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\na\r\n'
    for body in (
        b"".join(PART % (b"f%d" % i, b"a") for i in range(5000)), file * 5000, PART % (b"prompt", b"a" * (4 * MIB)),
        b"--x\r\n" + b"X-A: b\r\n" * 50_000, b"--x\r\nX-A: " + b"b" * MIB, b"\r\n--" * MIB, PART % (b"n" * MIB, b"1"),
        PART % (b"prompt", b"\xff" * 1000),
    ):  # fmt: skip
        yield post(host, wire.UPSCALE, FORM, body + b"--x--\r\n")
    yield post(host, wire.UPSCALE, "application/x-www-form-urlencoded", b"a=b&" * (MIB // 2))


def charsets(host: str) -> Iterator[bytes]:
    """Every codec of Python that is not UTF-8, and some that are none."""
    body = PART % (b"prompt", b"a-" + b"zzb" * 20_000) + b"--x--\r\n"
    for name in CODECS:
        if name not in ("utf_8", "utf-8"):
            yield post(host, wire.UPSCALE, f"{FORM}; charset={name}", body)


def chunked(host: str) -> Iterator[bytes]:
    """Bodies of no stated length to every route, with a key and without."""
    body = (b"100000\r\n" + bytes(MIB) + b"\r\n") * 4 + b"0\r\n\r\n"
    for path, key in itertools.product(PATHS, ("", KEYS[0])):
        method = "POST" if path.startswith("/v1/images") or path.endswith("cancel") else "GET"
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked", "Connection": "close"}
        yield wire.head(method, path, host, headers | ({"X-API-Key": key} if key else {})) + body
