"""Requests that mean to cost more than their price, sent by one key, while another key enlarges small pictures."""

import itertools
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.drills import jobs, wire
from tests.drills.figures import Figure, middle, none, seconds
from tests.drills.hostile_bodies import HASHES, KEYS, MIB, small_picture, small_pictures, start_senders
from tests.support.hostile_kinds import KINDS as FILES
from tests.support.service import Served, running

PAUSE = 0.3  # seconds in the midst of a body; its place in the queue lasts for less
LEAST = 3  # small pictures beside each kind
TILE = 8192  # pixels a side of the tiles of a TIFF of 8 x 8
WEIGHTS = {
    "a LoRA's pattern without end": ".safetensors",
    "a LoRA's many patterns": ".safetensors",
    "a LoRA's config of lists": ".safetensors",
    "one text encoded often": ".pt",
    "a pickle of nested pairs": ".pt",
}
LONG = "\U0001f600" * 20_000
Pieces = Iterable[bytes]


@dataclass(frozen=True)
class Kind:
    """One way to cost much: requests, how many are sent at a time, and how each is."""

    name: str
    requests: Callable[[str], Iterator[Pieces]]
    senders: int = 8
    send: Callable[[str, Pieces], int] = lambda url, pieces: wire.pour(url, pieces, 60).status


def hostile_costs(count: int) -> list[Figure]:
    """So many requests of each kind."""
    with TemporaryDirectory(prefix="enlarger-models-") as place:
        names = hostile_models(Path(place))
        with running(keys=HASHES, models_folder=place, allow_pickle=True) as served:
            generation = jobs.generation()
            wire.send_request(
                served.url, wire.send_json(wire.GENERATE, jobs.host_of(served), generation, X_API_Key=KEYS[1])
            )
            usual = middle([small_picture(served) for _ in range(5)])
            figures = [seconds("a picture of 8 x 8 of the other key before, median", usual)]
            statuses: list[int] = []
            for kind in (*KINDS, models(names)):
                longest = max(beside(served, kind, count, statuses))
                figures.append(seconds(f"{kind.name}: one of them meanwhile, longest", longest, most=usual + 2))
            return [*figures, none("hostile requests without an answer, of those that read one", statuses.count(0))]


def beside(served: Served, kind: Kind, count: int, statuses: list[int]) -> list[float]:
    """The seconds that small pictures of the other key take while so many requests of a kind are sent."""
    requests = itertools.islice(kind.requests(jobs.host_of(served)), count)
    senders = start_senders(
        min(kind.senders, count), requests, lambda pieces: statuses.append(kind.send(served.url, pieces))
    )
    return small_pictures(served, senders, LEAST)


def late_uploads(host: str) -> Iterator[Pieces]:
    """Uploads that stand still for a moment: their places in the queue lapse meanwhile."""
    picture = [wire.Part("image", wire.png(64, 64))]
    while True:
        raw = wire.form(wire.UPSCALE, host, {"scale": "2", "prompt": LONG}, picture, X_API_Key=KEYS[0])
        yield halves(raw)


def halves(raw: bytes) -> Iterator[bytes]:
    yield raw[: len(raw) // 2]
    time.sleep(PAUSE)
    yield raw[len(raw) // 2 :]


def loads(host: str) -> Iterator[Pieces]:
    """Weights loaded and dropped, over and over."""
    for verb in itertools.cycle(("load", "unload")):
        yield [wire.request("POST", f"/v1/models/tiny-sd/{verb}", host, X_API_Key=KEYS[0])]


def lists(host: str) -> Iterator[Pieces]:
    """All jobs listed, with their long prompts."""
    while True:
        yield [wire.request("GET", "/v1/jobs?limit=1000", host, X_API_Key=KEYS[0])]


def huge_results(host: str) -> Iterator[Pieces]:
    """Ten results of 67 megapixels of a picture of one pixel."""
    picture = [wire.Part("image", wire.png(1, 1))]
    fields = {"size": "4096x4096", "scale": "2", "n": "10"}
    while True:
        yield [wire.form(wire.UPSCALE, host, fields, picture, X_API_Key=KEYS[0])]


def long_prompts(host: str) -> Iterator[Pieces]:
    """As many characters as a prompt may have, and far more tokens."""
    while True:
        yield [wire.send_json(wire.GENERATE, host, jobs.generation(prompt="a " * 16_000), X_API_Key=KEYS[0])]


@cache
def tiled_tiff() -> bytes:
    """8 x 8 pixels, in one tile of many."""
    compress = zlib.compressobj(9)
    data = b"".join(compress.compress(bytes(TILE)) for _ in range(TILE)) + compress.flush()
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    entries += [(322, 4, TILE), (323, 4, TILE), (324, 4, 134), (325, 4, len(data))]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + data


def huge_tiles(host: str) -> Iterator[Pieces]:
    """A TIFF of few pixels in a tile of many."""
    picture = [wire.Part("image", tiled_tiff(), "a.tif", "image/tiff")]
    while True:
        yield [wire.form(wire.UPSCALE, host, {"scale": "2"}, picture, X_API_Key=KEYS[0])]


def unread(host: str) -> Iterator[Pieces]:
    """Answers of a mebibyte and more on each connection, of which nothing is read."""
    while True:
        yield [wire.head("GET", "/openapi.json", host, {"X-API-Key": KEYS[0]})] * 16


def hold(url: str, pieces: Pieces) -> int:
    """Send and read nothing, for a moment."""
    with socket.create_connection(wire.address(url), timeout=5) as connection:
        with suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
        time.sleep(1)
    return -1


KINDS = (
    Kind("uploads that come late", late_uploads),
    Kind("weights loaded and dropped", loads),
    Kind("lists of all jobs", lists, senders=24),
    Kind("ten results of 67 megapixels of one pixel", huge_results),
    Kind("prompts of 16,000 words", long_prompts),
    Kind("tiles of 67 megapixels", huge_tiles),
    Kind("answers that nobody reads", unread, senders=60, send=hold),
)


def hostile_models(folder: Path) -> list[str]:
    """LoRAs and pickles that mean to cost time and memory, in a folder of models; their names."""
    (folder / "Lora").mkdir()
    for index, (label, suffix) in enumerate(WEIGHTS.items()):
        (folder / "Lora" / f"hostile-{index}{suffix}").write_bytes(FILES[label].make(MIB))
    return [f"hostile-{index}" for index in range(len(WEIGHTS))]


def models(names: list[str]) -> Kind:
    """Every hostile file of weights asked for in turn."""

    def requests(host: str) -> Iterator[Pieces]:
        for name in itertools.cycle(names):
            body = jobs.generation(prompt=f"a <lora:{name}:1>")
            yield [wire.send_json(wire.GENERATE, host, body, X_API_Key=KEYS[0])]

    return Kind("hostile LoRAs and pickles", requests)
