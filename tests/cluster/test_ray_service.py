"""The service with actors of a Ray cluster as workers: the same pictures, and the same promises when one dies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.drills import jobs
from tests.support.ray_cluster import WITH_RAY
from tests.support.service import HTTP, Served, running, until

pytestmark = [WITH_RAY, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running(ray="local", workers="1..2") as served:
        yield served


def actors(served: Served) -> list[psutil.Process]:
    """The processes of the workers, wherever they are."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    return [each for each in children if "WorkerActor" in " ".join(each.cmdline()[:1])]


def test_openais_client_gets_the_picture_that_a_plain_worker_makes(served: Served) -> None:
    def made(url: str) -> str:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        extra = {"num_inference_steps": 2, "seed": 5}
        answer = client.images.generate(prompt="a lighthouse", model="tiny-sd", size="64x64", extra_body=extra)
        return str(answer.data[0].b64_json)

    with running() as plain:
        assert made(served.url) == made(plain.url)


def test_a_job_whose_actor_dies_is_done_once_by_another(served: Served) -> None:
    before = {each.pid for each in actors(served)}
    made = [jobs.generate_later(served, num_inference_steps=40, seed=seed)["id"] for seed in range(2)]
    until(lambda: jobs.job(served, made[0])["status"] == "running", 30, served.log_tail)
    victims = [each.pid for each in actors(served)]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    ended = jobs.wait_for(served, made, 120)
    assert {each["status"] for each in ended.values()} == {"succeeded"}, served.log_tail()
    assert {each.pid for each in actors(served)} - before
    folder = served.data / "jobs" / made[0]
    assert sorted(path.name for path in folder.iterdir()) == ["done.json", "result-0.png"]


def test_a_cancelled_job_ends_within_a_step(served: Served) -> None:
    id = jobs.generate_later(served, num_inference_steps=150, size="256x256")["id"]
    until(lambda: jobs.job(served, id)["status"] == "running", 60, served.log_tail)
    assert HTTP.post(f"{served.url}/v1/jobs/{id}/cancel").status_code == 200
    until(lambda: jobs.job(served, id)["status"] == "canceled", 10, served.log_tail)
    until(lambda: jobs.idle(served), 10, served.log_tail)


def test_it_stops_in_order_and_leaves_nothing_running(tmp_path: Path) -> None:
    with running(tmp_path / "data", ray="local") as served:
        id = jobs.generate_later(served, num_inference_steps=3)["id"]
        children: list[Any] = psutil.Process(served.process.pid).children(recursive=True)
        jobs.wait_for(served, [id], 60)
    assert served.process.returncode == 0
    _, alive = psutil.wait_procs(children, 20)
    assert alive == []
