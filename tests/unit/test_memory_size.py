"""Amounts of memory in people's words."""

import pytest

from enlarger.errors import InputError
from enlarger.memory_size import MemorySize, format_bytes, parse_memory
from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest

GIB = 2**30


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (4, 4 * GIB),
        (0.5, GIB // 2),
        ("4", 4 * GIB),
        ("2.5", 5 * GIB // 2),
        ("4GB", 4 * 10**9),
        ("4 gib", 4 * GIB),
        ("512MB", 512 * 10**6),
        ("512MiB", 2**29),
        ("100000KB", 10**8),
        (".5TB", 5 * 10**11),
        ("1TiB", 2**40),
    ],
)
def test_amounts(said: str | float, size: int) -> None:
    assert parse_memory(said) == MemorySize(size)
    assert parse_memory(said).of(7) == size


def test_shares_of_what_is_available() -> None:
    assert parse_memory("50%").of(10**9) == 5 * 10**8 and parse_memory(" 12.5 % ").of(800) == 100


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("", "memory is '', expected an amount as 4GB, 4GiB, 512MB or 50%, or a number of GiB"),
        ("4 apples", "memory is '4 apples', expected an amount as 4GB, 4GiB, 512MB or 50%, or a number of GiB"),
        ("-4GB", "memory is '-4GB', expected an amount as 4GB, 4GiB, 512MB or 50%, or a number of GiB"),
        ("٤GB", "memory is '٤GB', expected an amount as 4GB, 4GiB, 512MB or 50%, or a number of GiB"),
        (True, "memory is True, expected an amount as 4GB, 4GiB, 512MB or 50%, or a number of GiB"),
        (float("nan"), "memory is nan, expected an amount as 4GB, 4GiB, 512MB or 50%, or a number of GiB"),
        ("0%", "memory is 0%, expected 1% to 100% of what is available"),
        ("150%", "memory is 150%, expected 1% to 100% of what is available"),
        ("1MB", "memory is 1MB, expected 0.01 to 1024 GiB"),
        (0, "memory is 0, expected 0.01 to 1024 GiB"),
        ("2000 TB", "memory is 2000 TB, expected 0.01 to 1024 GiB"),
    ],
)
def test_what_is_no_amount(said: str | float, message: str) -> None:
    with pytest.raises(InputError) as raised:
        UpscaleRequest(None, memory=said)
    assert str(raised.value) == message


@pytest.mark.parametrize("kind", [UpscaleRequest, GenerateRequest, RefineRequest, InpaintRequest, DepthRequest])
def test_every_request_takes_it(kind: type) -> None:
    assert kind("a", memory="4GB").memory == "4GB"


def test_amounts_for_people() -> None:
    assert [format_bytes(size) for size in (512e6, 4.2e9, 999.6e6, 35e3)] == ["512 MB", "4.2 GB", "1 GB", "0.035 MB"]
