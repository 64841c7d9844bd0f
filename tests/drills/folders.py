"""Kills (SIGKILL) of a command that enlarges a folder: given again it goes on, and in the end each picture is there."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tests.drills.figures import Figure, exactly, none, share
from tests.support.pictures import texture

EACH = 15  # pictures for each kill
START = 4.0  # seconds within which a run that is killed before its first result is killed
WAIT = 120.0  # seconds for a result


@dataclass
class Tally:
    """What was seen so far."""

    kills: int = 0
    whole: dict[Path, tuple[Any, ...]] = field(default_factory=dict)  # the results, by identity, when first seen
    half: int = 0
    again: int = 0


def folders(rounds: int, seed: int = 0) -> list[Figure]:
    """So many kills, and 15 times as many pictures in a tree; some share a name but for its suffix."""
    chance, tally = random.Random(seed), Tally()
    with TemporaryDirectory(prefix="enlarger-folder-") as name:
        place = Path(name)
        sizes = make_pictures(place / "in", EACH * rounds, chance)
        for _ in range(rounds):
            kill_one(place, tally, chance)
            look(place / "out", tally)
        status = start(place / "in", place / "out").wait()
        look(place / "out", tally)
        return report(place, tally, sizes, status)


def make_pictures(folder: Path, count: int, chance: random.Random) -> dict[str, tuple[int, int]]:
    """Small pictures in a folder and in one inside it; the sizes by the names of the results."""
    sizes = dict[str, tuple[int, int]]()
    (folder / "inner").mkdir(parents=True)
    for number in range(count):
        kind, pair = ("png", "jpg", "webp")[number % 3], number // 2
        has_twin = pair % 5 == 0 and number // 2 * 2 + 1 < count
        stem, inner = (f"{pair:03}" if has_twin else f"{number:03}-{kind}"), "inner/" if pair % 3 == 0 else ""
        width, height = chance.randint(6, 20), chance.randint(6, 20)
        Image.fromarray(texture(width, height)).save(folder / f"{inner}{stem}.{kind}")
        sizes[f"{inner}{stem}{f'.{kind}' if has_twin else ''}-x2.png"] = (2 * width, 2 * height)
    return sizes


def start(pictures: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, as a user would give it again and again."""
    command = [sys.executable, "-m", "enlarger", "upscale", str(pictures), "-o", str(out), "--recursive", "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill_one(place: Path, tally: Tally, chance: random.Random) -> None:
    """Start the command and kill it at some moment: before its first result, or around one of the next."""
    process, wanted = start(place / "in", place / "out"), chance.randint(0, EACH - 1)
    end = time.monotonic() + WAIT
    while len(results(place / "out")) < len(tally.whole) + wanted and process.poll() is None:
        assert time.monotonic() < end, "no result came"
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05) if wanted else chance.uniform(0, START))
    process.send_signal(signal.SIGKILL)
    tally.kills += process.wait() == -signal.SIGKILL


def results(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".enlarger-")]


def look(out: Path, tally: Tally) -> None:
    """Whether each result is whole, and is the very file that it was when it was first seen."""
    for path in results(out):
        about = path.stat()
        identity = (about.st_ino, about.st_mtime_ns, about.st_size)
        tally.again += tally.whole.setdefault(path, identity) != identity
        try:
            with Image.open(path) as image:
                image.load()
        except OSError:
            tally.half += 1


def report(place: Path, tally: Tally, sizes: dict[str, tuple[int, int]], status: int) -> list[Figure]:
    """What came out, beside what an uninterrupted run makes."""
    out, found = place / "out", dict[str, tuple[int, int]]()
    for path in results(out):
        with Image.open(path) as image:
            found[path.relative_to(out).as_posix()] = image.size
    start(place / "in", place / "whole").wait()
    twins = [name for name in sizes if name.count(".") > 1]
    right = [name for name, size in sizes.items() if found.get(name) == size]
    same = [name for name in right if (place / "whole" / name).read_bytes() == (out / name).read_bytes()]
    left = [path for path in out.rglob("*") if path.name.startswith(".enlarger-")]
    return [
        exactly("kills of the running command", tally.kills, len(sizes) // EACH),
        exactly("exit status of the last run", status, 0),
        share("results of the right name and size", len(right), len(sizes)),
        share("of these of pictures that share a name but for its suffix", len(found.keys() & set(twins)), len(twins)),
        share("equal to the bytes that one uninterrupted run writes", len(same), len(sizes)),
        none("other files", len(found.keys() - sizes.keys())),
        none("half files ever seen under a result's name", tally.half),
        none("results written again after they were there", tally.again),
        none("temporary files left", len(left)),
    ]
