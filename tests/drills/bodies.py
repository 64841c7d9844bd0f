"""Bodies over every limit: refused, and the service's memory hardly moves."""

from collections.abc import Callable, Iterator

from tests.drills import jobs, wire
from tests.drills.figures import Figure, mebibytes, seconds, share
from tests.drills.processes import sampled
from tests.drills.uploads import good_picture
from tests.support.service import Served

MIB = 1 << 20
PIECE = bytes(MIB)
REFUSALS = (400, 408, 413, 415)
SECONDS = 30.0  # idle and header deadlines of the service are shorter

Pieces = Iterator[bytes]


def bodies(served: Served, mebibytes_sent: int) -> list[Figure]:
    """Bodies of so many MiB, in every way to send them."""
    assert good_picture(served)
    found: dict[str, wire.Answer] = {}
    host = jobs.host_of(served)
    with sampled(served.process.pid) as peak:
        for name, make in WAYS.items():
            found[name] = wire.pour(served.url, make(host, mebibytes_sent), SECONDS)
    wrong = [f"{name}: {each.status}" for name, each in found.items() if not (each.status in REFUSALS and each.code)]
    reported = {name: found[name] for name in EARLY}
    slow = max(reported, key=lambda name: reported[name].seconds)
    return [
        share("refused with 413, 400, 408 or 415" + (f" (not: {', '.join(wrong)})" if wrong else ""),
              len(found) - len(wrong), len(found)),
        seconds(f"time to a refusal by the headers alone, longest ({slow})", reported[slow].seconds, most=1),
        mebibytes("growth of the server's memory", peak.growth_server, most=16 * MIB),
        mebibytes("growth of all processes' memory", peak.growth, most=16 * MIB),
        share("good pictures afterwards", sum(good_picture(served) for _ in range(3)), 3),
    ]  # fmt: skip


def start(host: str, path: str = wire.UPSCALE, **headers: str) -> bytes:
    """The head of a form's request."""
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return wire.head("POST", path, host, kind | {key.replace("_", "-"): value for key, value in headers.items()})


def opening(field: str, name: str | None = "a.png") -> bytes:
    """How a part of the form begins."""
    file = "" if name is None else f'; filename="{name}"\r\nContent-Type: image/png'
    return f'--x\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'.encode()


def stated(host: str, size: int) -> Pieces:
    """The length is stated, and true."""
    yield start(host, Content_Length=str(size * MIB))
    yield from [opening("image"), *[PIECE] * size]


def stated_json(host: str, size: int) -> Pieces:
    yield wire.head(
        "POST", wire.GENERATE, host, {"Content-Type": "application/json", "Content-Length": str(size * MIB)}
    )
    yield from [b'{"prompt": "', *[b"a" * MIB] * size]


def stated_absurdly(host: str, size: int) -> Pieces:
    yield start(host, Content_Length="9" * 30)
    yield opening("image")


def more_than_stated(host: str, size: int) -> Pieces:
    """What comes after the stated length is not a request."""
    yield start(host, Content_Length=str(MIB))
    yield from [opening("image"), *[PIECE] * size]


def less_than_stated(host: str, size: int) -> Pieces:
    """The rest never comes."""
    yield start(host, Content_Length=str(8 * MIB))
    yield from [opening("image"), PIECE]


def stated_twice(host: str, size: int) -> Pieces:
    head = start(host, Content_Length="10")
    yield head[:-2] + f"Content-Length: {size * MIB}\r\n\r\n".encode()
    yield from [PIECE] * size


def chunked(host: str, size: int) -> Pieces:
    """No length is stated."""
    yield start(host, Transfer_Encoding="chunked")
    for piece in [opening("image"), *[PIECE] * size]:
        yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    yield b"0\r\n\r\n"


def chunked_and_stated(host: str, size: int) -> Pieces:
    """Both: the way requests are smuggled."""
    yield start(host, Content_Length="5", Transfer_Encoding="chunked")
    for piece in [opening("image"), *[PIECE] * size]:
        yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    yield b"0\r\n\r\n"


def packed(host: str, size: int) -> Pieces:
    """Compressed; a body that unpacks to a thousand times its size looks no different."""
    yield start(host, Content_Encoding="gzip", Content_Length=str(MIB))
    yield PIECE


def many_parts(host: str, size: int) -> Pieces:
    body = opening("user", None) + b"a\r\n"
    yield start(host, Content_Length=str(100_000 * len(body) + 5))
    yield from [body * 1000] * 100
    yield b"--x--"


def many_files(host: str, size: int) -> Pieces:
    body = opening("image") + b"a\r\n"
    yield start(host, Content_Length=str(100_000 * len(body) + 5))
    yield from [body * 1000] * 100
    yield b"--x--"


def huge_field(host: str, size: int) -> Pieces:
    """A text field of nearly the whole limit of a body."""
    amount = 60 * MIB
    yield start(host, Content_Length=str(len(opening("prompt", None)) + amount + 7))
    yield from [opening("prompt", None), *[b"a" * MIB] * 60, b"\r\n--x--"]


def huge_picture(host: str, size: int) -> Pieces:
    """A file within the limit of a body, over that of a picture."""
    amount = 60 * MIB
    yield start(host, Content_Length=str(len(opening("image")) + amount + 7))
    yield from [opening("image"), *[PIECE] * 60, b"\r\n--x--"]


def huge_header(host: str, size: int) -> Pieces:
    """A part whose own header does not end."""
    yield start(host, Content_Length=str(40 * MIB))
    yield from [b"--x\r\nContent-Disposition: ", *[b"a" * MIB] * 40]


def no_boundary(host: str, size: int) -> Pieces:
    yield start(host, Content_Length=str(40 * MIB))
    yield from [b"a" * MIB] * 40


def urlencoded(host: str, size: int) -> Pieces:
    """A form of the other kind, of a million fields."""
    kind = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(40 * MIB)}
    yield wire.head("POST", wire.UPSCALE, host, kind)
    yield from [b"a=b&" * (MIB // 4)] * 40


WAYS: dict[str, Callable[[str, int], Pieces]] = {
    way.__name__.replace("_", " "): way
    for way in (
        stated, stated_json, stated_absurdly, more_than_stated, less_than_stated, stated_twice, chunked,
        chunked_and_stated, packed, many_parts, many_files, huge_field, huge_picture, huge_header, no_boundary,
        urlencoded,
    )
}  # fmt: skip
EARLY = ("stated", "stated json", "stated absurdly", "packed")  # the headers say enough
