"""What the service writes stays below `disk`, whatever is asked for; what is not its own is left where it is."""

import io
import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import numpy as np
from PIL import Image

from enlarger.service.jobs.data_folder import DATABASE, claim_folder, mark_folder
from enlarger.service.jobs.store import JobDatabase
from tests.drills import wire
from tests.drills.figures import Figure, mebibytes, none, share
from tests.support.service import START_SECONDS, start

MIB = 1 << 20
DISK = 4 * MIB
EXPECTED = (200, 400, 429)
BODY = 1 * MIB  # the largest that is sent
RUBBISH = 3  # rows of the database that are no jobs


class Watch(threading.Thread):
    """The most bytes that ever lie below a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most, self.goes_on = folder, 0, True
        self.start()

    def run(self) -> None:
        while self.goes_on:
            self.most = max(self.most, sum(size_of(path) for path in files_below(self.folder)))


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder, while others write and delete there."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def quota(requests: int) -> list[Figure]:
    """Ask for so many results of mixed sizes, with long texts and with noise that does not compress."""
    chance, statuses = random.Random(0), list[int]()
    with TemporaryDirectory(prefix="enlarger-quota-") as place:
        data = Path(place) / "data"
        claim_folder(data)
        mark_folder(data)
        foreign = [data / "jobs" / "notes.txt", data / "spool" / "mail.txt", data / "jobs" / "mine"]
        for path in foreign:
            path.write_text("years of work")
            os.utime(path, (1, 1))
        link = data / "jobs" / ("x" * 22)
        link.symlink_to(data / "nowhere")
        write_rubbish(data / DATABASE)
        served = start(Path(place), data, (), {"disk": DISK / (1 << 30), "bounds": {"body": BODY}})
        try:
            served.wait_ready(START_SECONDS)
            watch = Watch(data)
            with httpx2.Client(timeout=60) as client:
                statuses = [request(client, served.url, chance) for _ in range(requests)]
            watch.goes_on = False
            watch.join()
        finally:
            served.process.terminate()
            served.process.wait(60)
        kept = sum(path.exists() for path in foreign) + link.is_symlink()
        log = served.log.read_text(errors="replace")
    return [
        mebibytes(f"the most below data in {requests:,} requests, with {DISK // MIB} MiB", watch.most, DISK + BODY),
        none("answers that are neither pictures nor refusals", len([one for one in statuses if one not in EXPECTED])),
        Figure("pictures made", statuses.count(200), least=1),
        share("foreign files and links left alone", kept, len(foreign) + 1),
        share("of them named in the log", sum(repr(path.name) in log for path in (*foreign, link)), len(foreign) + 1),
        share("rows that are no jobs set aside and named in the log", log.count("is set aside: job"), RUBBISH),
    ]


def write_rubbish(database: Path) -> None:
    """Rows that no job has left."""
    JobDatabase.open(database).close()
    with closing(sqlite3.connect(database)) as connection, connection:
        for index in range(RUBBISH):
            values = (f"../rubbish-{index}", "", "queued", "then", 0, 0, 0, "{")
            names = "id, owner, status, created, attached, crashes, attempts, spec"
            connection.execute(f"INSERT INTO jobs ({names}) VALUES ({', '.join('?' * len(values))})", values)


def request(client: httpx2.Client, url: str, chance: random.Random) -> int:
    """One request; its status."""
    side = chance.choice((8, 16, 32, 96))
    noise = np.random.default_rng(chance.randrange(1 << 30)).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    text = "\U0001f600" * chance.choice((0, 100, 20_000))
    fields = {"scale": str(chance.choice((1, 2))), "prompt": text, "n": str(chance.choice((1, 1, 3)))}
    files = {"image": ("a.png", stream.getvalue(), "image/png")}
    return client.post(url + wire.UPSCALE, files=files, data=fields).status_code
