"""Deaths in the middle of a batch on a simulated Ray cluster, and an object store with errors: each picture once."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from PIL import Image

from enlarger.cluster.connect import import_ray, protect_local_cluster
from enlarger.cluster.manifest import NAME
from tests.drills.figures import Figure, exactly, none, seconds, share
from tests.support.ray_cluster import kill, photos
from tests.support.service import until

OBJECT_STORE_BYTES = 100_000_000
PAUSE = 0.2  # seconds between two looks at how far a run is
BAD = "bad.png"


@dataclass
class Batch:
    """A run of the command over a folder, in a process of its own."""

    place: Path
    count: int
    address: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        return self.place / "out"

    def start(self) -> None:
        command = [sys.executable, "-m", "enlarger", "upscale", "in", "-o", "out", "--ray", "auto", "--workers", "1..2"]
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.place, env=os.environ | {"RAY_ADDRESS": self.address}, stdout=log, stderr=log
            )

    def done(self) -> int:
        """How many results are there."""
        return sum(path.suffix == ".png" for path in self.out.iterdir()) if self.out.is_dir() else 0

    def is_over(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def wait_for(self, done: int) -> bool:
        """Wait for so many results; False if the run is over before."""
        while self.done() < done:
            if self.is_over():
                return False
            time.sleep(PAUSE)
        return True


@contextmanager
def simulated(nodes: int, num_cpus: int = 1) -> Iterator[Any]:
    """A cluster of a head without cores and so many nodes, all on this machine."""
    protect_local_cluster()
    import_ray()
    from ray.cluster_utils import Cluster

    head: dict[str, Any] = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(cluster, num_cpus)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, num_cpus: int = 1) -> Any:
    return cluster.add_node(num_cpus=num_cpus, object_store_memory=OBJECT_STORE_BYTES)


def deaths(kind: str, kills: int, count: int) -> list[Figure]:
    """A batch of `count` pictures, and a bad one, with so many deaths: of a `node`, an `actor` or the `driver`."""
    with TemporaryDirectory(prefix="enlarger-ray-") as folder, simulated(2) as cluster:
        batch = Batch(Path(folder), count, cluster.address)
        photos(batch.place / "in", count, side=48)
        (batch.place / "in" / BAD).write_bytes(b"\x89PNG\r\n\x1a\nno picture")
        started, killed = time.monotonic(), 0
        batch.start()
        for number in range(kills):
            if not batch.wait_for((number + 1) * count // (kills + 2)):
                break
            KILLS[kind](cluster, batch)
            killed += 1
        assert batch.process is not None
        status = batch.process.wait(1200)
        figures = whole(batch)
    return [
        exactly(f"deaths ({kind})", killed, kills),
        exactly("exit status, which says that the bad picture failed", status, 1),
        *figures,
        seconds("the run", time.monotonic() - started),
    ]


def kill_node(cluster: Any, batch: Batch) -> None:
    """A node goes without a word, and another one comes."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    add_node(cluster)


def kill_actor(cluster: Any, batch: Batch) -> None:
    """A worker's process is killed; wait until there is one."""
    for _ in range(300):
        for process in psutil.process_iter(["cmdline"]):
            if "MapWorker" in " ".join(process.info["cmdline"] or ())[:60]:
                kill(process.pid)
                return
        time.sleep(PAUSE)


def kill_driver(cluster: Any, batch: Batch) -> None:
    """The command is killed, and given again."""
    assert batch.process is not None
    kill(batch.process.pid)
    batch.process.wait()
    batch.start()


KILLS: dict[str, Callable[[Any, Batch], None]] = {"node": kill_node, "actor": kill_actor, "driver": kill_driver}


def whole(batch: Batch) -> list[Figure]:
    """What the manifest and the folder say."""
    rows = [json.loads(line) for line in (batch.out / NAME).read_text().splitlines()]
    times = Counter(row["key"] for row in rows)
    done = [row for row in rows if row["status"] == "done"]
    files = [path for path in batch.out.rglob("*") if path.is_file() and path.name != NAME]
    return [
        exactly("rows of the manifest", len(rows), batch.count + 1),
        share("pictures that are done there once", sum(times[row["key"]] == 1 for row in done), batch.count),
        exactly("rows of the bad picture, failed", sum(row["status"] == "failed" for row in rows), 1),
        share("results that open", sum(map(opens, files)), batch.count),
        none("other files left", len(files) - batch.count),
    ]


def opens(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True


@contextmanager
def object_store(every: int) -> Iterator[str]:
    """An S3 server with a bucket, of whose requests every so manieth fails; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.drills.faulty_store", str(port), str(every)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until(lambda: _listens(port), 60)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stores(count: int, every: int = 20) -> list[Figure]:
    """Pictures from and to an object store that fails now and then, until nothing is left to do."""
    with TemporaryDirectory(prefix="enlarger-s3-") as folder, object_store(every) as endpoint:
        keys = {"AWS_ACCESS_KEY_ID": "drill", "AWS_SECRET_ACCESS_KEY": "drill", "AWS_REGION": "us-east-1"}
        os.environ |= keys | {"AWS_ENDPOINT_URL": endpoint}
        place, names = Path(folder), [path.name for path in photos(Path(folder) / "in", count, side=48)]
        store: Any = import_module("boto3").client("s3")
        store.create_bucket(Bucket="drill")
        for name in names:
            store.upload_file(str(place / "in" / name), "drill", f"in/{name}")
        store.put_object(Bucket="drill", Key=f"in/{BAD}", Body=b"\x89PNG\r\n\x1a\nno picture")
        command = [sys.executable, "-m", "enlarger", "upscale"]
        there = [*command, "s3://drill/in", "-o", "s3://drill/out", "--ray", "local"]
        runs = [subprocess.run(there, capture_output=True, text=True)]
        while len(runs) < 5 and _failed(store) > 1:
            runs.append(subprocess.run(there, capture_output=True, text=True))
        subprocess.run([*command, "in", "-o", "plain"], cwd=place, capture_output=True)
        rows = _rows(store)
        same = sum(_object(store, f"out/{path.name}") == path.read_bytes() for path in (place / "plain").iterdir())
    return [
        Figure("runs until all were done", len(runs)),
        share("pictures that are done once", sum(row["status"] == "done" for row in rows), count),
        exactly("rows of the manifest", len({row["key"] for row in rows}), count + 1),
        share("results with the bytes of a plain run", same, count),
        none("runs that ended otherwise than with 0 or 1", sum(run.returncode not in (0, 1) for run in runs)),
    ]


def _object(store: Any, key: str) -> bytes:
    body: bytes = store.get_object(Bucket="drill", Key=key)["Body"].read()
    return body


def _rows(store: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _object(store, f"out/{NAME}").splitlines()]


def _failed(store: Any) -> int:
    return sum(row["status"] == "failed" for row in _rows(store))
