"""Bodies: received once, within a budget, and taken apart within bounds."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from enlarger.service.problems import ProblemError
from enlarger.service.settings import MIB, Bounds, Settings
from enlarger.service.uploads.body_parser import parse_body
from enlarger.service.uploads.body_spool import BodySpool
from enlarger.service.uploads.decoder_pool import DecoderPool
from enlarger.service.uploads.json_body import MAX_ITEMS, check_shape
from enlarger.service.uploads.messages import ParsedBody, ParseRequest
from tests.support.queues import async_test

MULTIPART, DATA_URL = "multipart", "data:image/png;base64,aGVsbG8="
PART = 'Content-Disposition: form-data; name="%s"'


def request_for(folder: Path, body: bytes, kind: Any = "json", **values: Any) -> ParseRequest:
    source = folder / "body"
    source.write_bytes(body)
    bounds: dict[str, Any] = {"max_fields": 4, "max_text_bytes": 5000, "max_image_bytes": 100, "max_mask_bytes": 10}
    return ParseRequest(kind, str(source), str(source), **({"boundary": "b", "seconds": 5} | bounds | values))


def parsed(folder: Path, body: bytes, kind: Any = "json", **values: Any) -> ParsedBody:
    return parse_body(request_for(folder, body, kind, **values))


def refused(folder: Path, body: bytes, kind: Any = "json", **values: Any) -> tuple[int, str, str]:
    with pytest.raises(ProblemError) as raised:
        parsed(folder, body, kind, **values)
    problem = raised.value.problem
    return problem.status, problem.code, problem.message


def form(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + b"--b--\r\n"


# Reception


async def pieces(*sizes: int) -> AsyncGenerator[bytes]:
    for size in sizes:
        yield b"x" * size


@async_test
async def test_a_body_is_one_file_until_its_block_ends(tmp_path: Path) -> None:
    spool = BodySpool(Settings(data=tmp_path))
    async with spool.receive(pieces(3, 4), "a") as body:
        assert body.read_bytes() == b"x" * 7 and spool.num_bytes == 7
        body.with_name("body-0").write_bytes(b"a file of it")
    assert list((tmp_path / "spool").iterdir()) == [] and spool.num_bytes == 0


@async_test
async def test_all_bodies_together_have_a_budget_and_each_key_its_own(tmp_path: Path) -> None:
    spool = BodySpool(Settings(data=tmp_path, bounds=Bounds(bodies=100, bodies_per_key=60)))
    async with spool.receive(pieces(60), "a"):
        with pytest.raises(ProblemError, match="bodies of 60 bytes of this key are under way") as refused:
            async with spool.receive(pieces(1), "a"):
                pass
        assert (refused.value.problem.status, refused.value.problem.code) == (429, "rate_limit_exceeded")
        async with spool.receive(pieces(40), "b"):
            with pytest.raises(ProblemError, match="bodies of 100 bytes are under way") as refused:
                async with spool.receive(pieces(1), ""):
                    pass
            assert (refused.value.problem.status, refused.value.problem.retry_after) == (503, 1)
            assert len(list((tmp_path / "spool").iterdir())) == 2
    async with spool.receive(pieces(100), ""):
        assert spool.num_bytes == 100


# JSON


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"images":[' + b"0," * MIB + b"0]}", f"expected {MAX_ITEMS} texts, commas and brackets at most"),
        (b'{"a":' * 100_000, "nested too deeply; expected 16 levels at most"),
        (b"[" * MIB, "nested too deeply"),
        (b"{" + b",".join(b'"%d":0' % i for i in range(100_000)) + b"}", "there is too much in it"),
        (b'{"a":1,"a":2}', "'a' is there twice"),
        (b'\xef\xbb\xbf{"a":1}', "it begins with a byte order mark"),
        ('{"a":1}'.encode("utf-16"), "can't decode"),
        ('{"a":1}'.encode("utf-16-le"), "Expecting"),
        ('{"a":1}'.encode("utf-32"), "can't decode"),
        (b'{"a":"' + b'\\"' * 200_000, "a text has too many quotes in it"),
        (b'{"a":"' + b"\\" * MIB, "Unterminated string"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":' + b"9" * 100_000 + b"}", "limit"),
    ],
)  # fmt: skip
def test_json_is_refused_before_anything_is_built_of_it(tmp_path: Path, body: bytes, text: str) -> None:
    status, code, message = refused(tmp_path, body)
    assert (status, code) == (400, "invalid_json") and text in message and len(message) < 300


def test_what_is_within_bounds_is_taken(tmp_path: Path) -> None:
    values = {"prompt": 'a "house" \\ \ud800 [[[[ ,,,, {"', "n": 1, "a": [[[[{"b": [1, 2.5, None, True]}]]]]}
    assert parsed(tmp_path, json.dumps(values).encode()).values == values
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choice('"\\,[]{}ab') for _ in range(12))
        check_shape(json.dumps({"a": text, "b": [text] * 3}).encode())


def test_text_in_json_is_bounded_and_pictures_are_not_text(tmp_path: Path) -> None:
    assert refused(tmp_path, b'{"a":"%s"}' % (b"x" * 5000))[:2] == (413, "payload_too_large")
    body = {"images": [{"image_url": DATA_URL}], "mask": {"image_url": DATA_URL}, "prompt": "data:"}
    found = parsed(tmp_path, json.dumps(body).encode(), max_text_bytes=200)
    assert found.values == {"images": [{"image_url": "data:0"}], "mask": {"image_url": "data:1"}, "prompt": "data:"}
    assert [(file.name, Path(file.path).read_bytes()) for file in found.files] == [
        ("image", b"hello"),
        ("mask", b"hello"),
    ]
    assert refused(tmp_path, json.dumps(body).encode(), max_mask_bytes=4)[1:] == (
        "image_file_too_large",
        "mask: is more than 4 bytes; shrink the picture or compress it better",
    )
    many = json.dumps({"images": [{"image_url": DATA_URL}] * 20}).encode()
    assert refused(tmp_path, many)[1:] == ("unsupported", "found more than 17 pictures, expected 1")


# Forms


def test_a_form_is_fields_and_files(tmp_path: Path) -> None:
    body = form((PART % "prompt", "ein Häuschen".encode()), (PART % "image" + '; filename="a"', b"\0\xff"))
    found = parsed(tmp_path, body, MULTIPART)
    assert found.values == {"prompt": "ein Häuschen"}
    assert [(file.name, Path(file.path).read_bytes()) for file in found.files] == [("image", b"\0\xff")]
    typed = PART % "%s" + "\r\nContent-Type: %s"
    many = [
        ("a", "application/json", b'"a \\u00e4"'),
        ("b", "application/json; charset=utf-8", b"2"),
        ("c", "text/x", b"1"),
    ]
    body = form(*[(typed % (name, kind), content) for name, kind, content in [*many, ("d", "application/json", b'"')]])
    assert parsed(tmp_path, body, MULTIPART).values == {"a": "a ä", "b": "2", "c": "1", "d": '"'}
    assert parsed(tmp_path, b"prompt=a%C3%A4+b&n=1&e=", "urlencoded").values == {"prompt": "aä b", "n": "1", "e": ""}


@pytest.mark.parametrize(
    ("kind", "body", "code", "text"),
    [
        (MULTIPART, form(*[(PART % f"f{i}", b"") for i in range(5)]), "invalid_form", "Maximum number of fields is 4"),
        (MULTIPART, form(*[(PART % "i" + '; filename="a"', b"")] * 18), "invalid_form", "number of files is 17"),
        (MULTIPART, form((PART % "a", b"x" * 5001)), "payload_too_large", "larger than 5000 bytes"),
        (MULTIPART, form((PART % "a", b"\xff")), "invalid_form", "its text is not UTF-8, in 'a'; a picture needs a"),
        (MULTIPART, form((PART % "a", b"b"))[:-6], "invalid_form", "it is cut short: the boundary at its end is"),
        (MULTIPART, form((PART % "a" + '; filename="a"', b"b"))[:-9], "invalid_form", "it is cut short: the boundary"),
        (MULTIPART, b"", "invalid_form", "it is cut short: the boundary at its end is missing"),
        (MULTIPART, form((PART % ("a" * 2000), b"")), "invalid_form", "a part has no name, or one too long"),
        (MULTIPART, form(("X: y", b"")), "invalid_form", "a part has no name"),
        (MULTIPART, form((PART % "a", b""), (PART % "a", b"")), "invalid_value", "'a' is there twice"),
        (MULTIPART, form((PART % "a" + "\r\nX: y" * 10_000, b"")), "invalid_form", "it is no multipart"),
        (MULTIPART, form((PART % "a" + "\r\nX: " + "y" * MIB, b"")), "invalid_form", "it is no multipart"),
        (MULTIPART, b"x" * MIB, "invalid_form", "it is no multipart"),
        ("urlencoded", b"a=1&" * 100_000, "payload_too_large", "larger than 5000 bytes"),
        ("urlencoded", b"a=1&" * 5, "invalid_form", "Too many fields"),
        ("urlencoded", b"a=%ff", "invalid_form", "its text is not UTF-8"),
        ("urlencoded", b"a=\xff", "invalid_form", "its text is not UTF-8"),
    ],
)  # fmt: skip
def test_forms_have_bounds(tmp_path: Path, kind: str, body: bytes, code: str, text: str) -> None:
    assert refused(tmp_path, body, kind)[1] == code
    assert text in refused(tmp_path, body, kind)[2]


def test_the_decoder_takes_bodies_apart_and_outlives_the_worst(tmp_path: Path) -> None:
    async def run() -> None:
        pool = DecoderPool(Settings(data=tmp_path))
        await pool.start()
        try:
            text = {"prompt": "\ud800 half", "n": 10**25}
            found = await pool.parse_body(request_for(tmp_path, json.dumps(text).encode()), "")
            assert found.values == text
            with pytest.raises(ProblemError, match="'a' is there twice"):
                await pool.parse_body(request_for(tmp_path, b'{"a":1,"a":1}'), "")
            slow = request_for(tmp_path, b'{"a":1}', seconds=0)
            with pytest.raises(ProblemError, match="the body cannot be read: it takes too much time or memory"):
                await pool.parse_body(slow, "")
        finally:
            await pool.stop()

    asyncio.run(run())


@pytest.mark.parametrize("content_type", [b"image/png", b"application/octet-stream", b"IMAGE/webp; x=1"])
def test_a_part_with_a_content_type_and_no_file_name_is_a_file(tmp_path: Path, content_type: bytes) -> None:
    head = b'--B\r\nContent-Disposition: form-data; name="image"\r\nContent-Type: ' + content_type
    body = head + b'\r\n\r\n\0\xff\r\n--B\r\nContent-Disposition: form-data; name="scale"\r\n'
    body += b"Content-Type: text/plain; charset=utf-8\r\n\r\n2\r\n--B--\r\n"
    found = parsed(tmp_path, body, "multipart", boundary="B")
    assert [file.name for file in found.files] == ["image"] and found.values == {"scale": "2"}
    assert Path(found.files[0].path).read_bytes() == b"\0\xff"
