"""Batches on a small Ray cluster: the bytes and rules of a plain run, a manifest, and what survives deaths."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from enlarger.cli.cluster_jobs import process_on_cluster
from enlarger.cli.image_jobs import FileOptions
from enlarger.cluster.connect import ClusterOptions
from enlarger.cluster.manifest import NAME
from enlarger.cluster.pipeline import run_batch
from enlarger.errors import CheckpointError
from enlarger.requests import UpscaleRequest
from tests.support import ray_cluster
from tests.support.ray_cluster import WITH_RAY, Call, kill, photos, small_cluster

pytestmark = [WITH_RAY, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]
call = pytest.fixture(ray_cluster.caller)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with small_cluster() as ray:
        yield ray


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(out: Path) -> dict[str, Any]:
    """The manifest by input; each has one row."""
    lines = [json.loads(line) for line in (out / NAME).read_text().splitlines()]
    found = {Path(line["input"]).name: line for line in lines}
    assert len(found) == len(lines)
    return found


def results(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_a_folder_has_the_bytes_and_names_of_a_plain_run(ray: Any, call: Call, here: Path) -> None:
    photos(here / "in", 5)
    photos(here / "in" / "deeper", 2, first=5)
    shutil.copy("in/p00000.png", "in/p00000.jpg")  # whose names would collide, and whose kind is another
    (here / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    (here / "in" / "notes.txt").write_text("none")
    plain = call("upscale", "in", "-r", "-o", "plain", "--seed", "3")
    status, out, err = call("upscale", "in", "-r", "-o", "out", "--seed", "3", "--ray", "local", "--workers", "2")
    assert (status, plain[0]) == (1, 1), err
    assert results(here / "out") == results(here / "plain") != {}
    assert sorted(out.split()) == sorted(plain[1].replace("plain/", "out/").split())
    found = rows(here / "out")
    assert {row["status"] for name, row in found.items() if name != "bad.png"} == {"done"} and len(found) == 9
    assert found["bad.png"]["status"] == "failed" and "in/bad.png" in found["bad.png"]["error"]
    assert "notes.txt: passed over, of a kind that is not read" in err
    assert "8 done, 1 failed, 1 passed over; out/enlarger-manifest.jsonl has each" in err
    assert not [path for path in (here / "out").rglob("*") if path.suffix in (".part", ".jsonl") and path.name != NAME]


def test_a_second_run_goes_on_and_retries_only_what_failed(ray: Any, call: Call, here: Path) -> None:
    made = photos(here / "in", 4)
    whole = made[1].read_bytes()
    made[1].write_bytes(whole[:60])
    run = ("upscale", "in", "-o", "out", "--ray", "local")
    assert call(*run)[0] == 1
    before = {path: path.stat().st_mtime_ns for path in (here / "out").glob("*.png")}
    made[1].write_bytes(whole)
    status, out, err = call(*run)
    assert (status, out.split()) == (0, ["out/p00001-x2.png"]), err
    assert "1 done, 3 done before" in err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {row["status"] for row in rows(here / "out").values()} == {"done"}
    status, out, err = call(*run, "--json")  # nothing is left to do
    assert (
        status == 0
        and [json.loads(line)["skipped"] for line in out.splitlines()] == ["was made by the same command before"] * 4
    )


def test_what_a_killed_driver_had_made_but_not_noted_is_found(ray: Any, call: Call, here: Path) -> None:
    photos(here / "in", 3)
    run = ("upscale", "in", "-o", "out", "--ray", "local")
    assert call(*run)[0] == 0
    lines = (here / "out" / NAME).read_text().splitlines()
    (here / "out" / NAME).write_text(lines[0] + "\n")
    made = {path: path.stat().st_mtime_ns for path in (here / "out").glob("*.png")}
    status, _, err = call(*run)
    assert (status, len(rows(here / "out"))) == (0, 3) and "3 done before" in err
    assert {path: path.stat().st_mtime_ns for path in made} == made
    status, _, err = call(*run, "--by", "3")  # other options have other names, and leave these rows
    assert status == 0 and len((here / "out" / NAME).read_text().splitlines()) == 6


def test_killed_actors_cost_nothing(ray: Any, call: Call, here: Path) -> None:
    photos(here / "in", 12, side=64)
    stop, killed = threading.Event(), list[int]()

    def kill_now_and_then() -> None:
        while not stop.is_set() and len(killed) < 2:
            time.sleep(0.2)
            if len(list((here / "out").glob("*.png"))) > 3 * len(killed):
                killed.extend(kill_one_worker())

    thread = threading.Thread(target=kill_now_and_then)
    thread.start()
    try:
        status, _, err = call("upscale", "in", "-o", "out", "--ray", "local", "--workers", "1")
    finally:
        stop.set()
        thread.join()
    assert status == 0, err
    assert killed and {row["status"] for row in rows(here / "out").values()} == {"done"}
    assert len(results(here / "out")) == 12 == len(rows(here / "out"))
    assert not list((here / "out").rglob(".*"))


def kill_one_worker() -> list[int]:
    """The process of an actor that works on pictures, killed."""
    for process in psutil.Process().children(recursive=True):
        if "MapWorker" in " ".join(process.cmdline()[:1]):
            kill(process.pid)
            return [process.pid]
    return []


class Deadly:
    """A worker that one of its jobs kills."""

    def run(self, jobs: Any, may_start: Any) -> Any:
        done = []
        for job in jobs:
            if not may_start(job["key"]):
                done.append({"key": job["key"], "gave_up": True})
                continue
            if job["key"] == "deadly":
                os._exit(1)
            done.append({"key": job["key"]})
        return done


def test_a_picture_that_kills_its_workers_costs_one_row(ray: Any) -> None:
    def jobs(done: Any) -> Any:
        return [{"key": key} for key in ("a", "b", "deadly", "c", "d")]

    done = list(run_batch(ray, (jobs, {}), Deadly, "Deadly", ClusterOptions("local", 1, 1)))
    assert sorted(done, key=lambda row: row["key"]) == [
        {"key": "a"}, {"key": "b"}, {"key": "c"}, {"key": "d"}, {"key": "deadly", "gave_up": True},
    ]  # fmt: skip


def test_a_model_that_only_the_nodes_miss_ends_the_run_with_its_own_error(ray: Any, here: Path) -> None:
    def load() -> None:
        raise CheckpointError("model: no such folder")

    photos(here / "in", 1)
    files = FileOptions(["in"], "out", "x2", cluster=ClusterOptions("local"))
    with pytest.raises(CheckpointError, match=r"^model: no such folder$"):
        process_on_cluster(files, UpscaleRequest(image=None), load, ())
    assert not (here / "out" / NAME).exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["in", "-o", "out", "--ray", "here"], "--ray is 'here', expected local, auto or ray://HOST:PORT"),
        (["in", "-o", "out", "--ray", "local", "--workers", "4..2"], "expected the smaller number first; write 2..4"),
        (["in", "-o", "out", "--ray", "local", "--workers", "many"], "expected a number such as 4, or a range"),
        (["in", "-o", "out", "--workers", "2"], "--workers and --gpus-per-worker say how --ray computes"),
        (["in", "--ray", "local"], "--ray needs --output FOLDER"),
        (["in", "-o", "out.png", "--ray", "local"], "names one file, but --ray needs a folder"),
        (["in", "-o", "in", "--ray", "local"], "--output in lies in in, listed while results are made"),
        (["in", "-r", "-o", "in/out", "--ray", "local"], "listed while results are made; choose another"),
        (["none", "-o", "out", "--ray", "local"], "none: no such file or folder"),
        (["in", "-o", "/proc/out", "--ray", "local"], "--output /proc/out: cannot be written"),
        (["in", "-o", "http://a.b/out", "--ray", "local"], "http"),
        (["in", "-o", "out", "--ray", "local", "--server", "http://a"], "--server and --ray name two that compute"),
        (["in", "-o", "out", "--ray", "local", "--device", "cuda:1"], "--device cuda:1 has no meaning with --ray"),
        (["s3://bucket/in", "-o", "out"], "s3://bucket/in is a URI, which only --ray reads and writes"),
        (["in", "-o", "s3://bucket/out"], "s3://bucket/out is a URI, which only --ray reads and writes"),
        (["in", "-o", "out", "--ray", "local", "--background", "no"], "expected a colour such as white"),
    ],
)
def test_what_can_be_refused_is_refused_before_a_cluster_starts(
    call: Call, here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    photos(here / "in", 1)
    monkeypatch.setattr("enlarger.cli.cluster_jobs.connected", lambda options: pytest.fail("a cluster was started"))
    status, _, err = call("upscale", *arguments)
    assert status in (1, 2) and text in " ".join(err.replace("│", " ").split()), err
