"""The worker process: jobs in on its standard input, events and files out, with tiny models and the bundled one."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import enlarger
from enlarger.image.generation import read_metadata
from enlarger.service.jobs.job import RESULT_FILE, JobSpec, OutputOptions
from tests.support import tiny, tiny_xl
from tests.support.worker import Worker, working

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
MODELS: tuple[dict[str, Any], ...] = (
    {"name": "bundled", "path": "bundled", "aliases": ["small"]},
    {"name": "sd", "path": str(tiny.sd1_folder())},
    {"name": "paint", "path": str(tiny.inpaint_folder())},
    {"name": "x2", "path": str(tiny.x2_folder())},
    {"name": "xl", "path": str(tiny_xl.base_folder()), "refiner": "refiner"},
    {"name": "refiner", "path": str(tiny_xl.refiner_folder())},
    {"name": "broken", "path": "/nowhere/at all"},
)
SIZE = (48, 40)
GENERATE = {"prompt": "a boat", "width": 48, "height": 40, "steps": 3, "seed": 7, "long_prompt": True}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with working(tmp_path_factory.mktemp("data"), *MODELS) as found:
        yield found


def pixels(image: Image.Image) -> Any:
    return np.array(image, dtype=np.int64)


def opened(worker: Worker, job: dict[str, Any], name: str) -> Image.Image:
    with Image.open(worker.folder(job) / name) as image:
        image.load()
        return image


def result(worker: Worker, job: dict[str, Any], index: int = 0) -> Image.Image:
    done = json.loads((worker.folder(job) / RESULT_FILE).read_text())
    about = done["images"][index]
    image = opened(worker, job, about["file"])
    assert image.size == (about["width"], about["height"])
    assert (worker.folder(job) / about["file"]).stat().st_size == about["bytes"]
    return image


def upscale(**more: Any) -> JobSpec:
    options = {"by": 2, "seed": 1, "long_prompt": True, **more.pop("options", {})}
    return JobSpec("upscale", "bundled", options, "image.png", **more)


def test_all_models_are_described_before_any_is_loaded(worker: Worker) -> None:
    ready = next(event for event in worker.seen if event["event"] == "ready")
    found = {one["name"]: one for one in ready["models"]}
    base = ["generate", "refine", "inpaint"]
    assert ready["device"] == "cpu"
    assert {name: (one["kind"], one["tasks"]) for name, one in found.items()} == {
        "bundled": ("bundled", ["upscale"]),
        "sd": ("sd", base),
        "paint": ("sd-inpaint", ["inpaint"]),
        "x2": ("x2", ["upscale"]),
        "xl": ("sdxl", base),
        "refiner": ("sdxl-refiner", ["refine"]),
        "broken": ("", []),
    }
    assert found["bundled"]["aliases"] == ["small"] and found["bundled"]["error"] is None
    assert "/nowhere/at all" in found["broken"]["error"]
    assert [event["event"] for event in worker.seen[:2]] == ["ready", "idle"]


def test_enlarging_with_the_bundled_model(worker: Worker) -> None:
    image = tiny.picture(64, 64)
    spec = upscale(options={"prompt": "a boat", "guidance": 7.5, "steps": 20}, notes=("said before",), live=True)
    job = worker.job(spec, image)
    done = worker.run_to_result(job)
    expected = enlarger.upscale(image, 2, device="cpu")
    found = result(worker, job)
    assert (pixels(found) == pixels(expected.image)).all() and done["consistency"] == expected.consistency
    assert done["model"] == "bundled" and done["changed"] is None and done["tokens"] == 0
    assert done["notes"] == [
        "said before",
        "the prompt changes nothing: bundled has no use for it",
        "steps changes nothing: bundled has no use for it",
        "guidance changes nothing: bundled has no use for it",
        *expected.notes,
    ]
    assert done["images"][0] | {"bytes": 0} == {
        "file": "result-0.png", "width": 128, "height": 128, "seed": 1, "format": "png", "bytes": 0, "flagged": None,
    }  # fmt: skip
    assert set(done["timings"]) == {"load", "inference", "encode"}
    events = [event for event in worker.seen if event.get("id") == job["id"]]
    assert [event["event"] for event in events] == ["started", "preview", "progress", "done"]
    assert events[1] | {"id": ""} == {"event": "preview", "id": "", "file": "preview-0.png", "index": None}
    assert events[2] | {"id": ""} == {"event": "progress", "id": "", "stage": "predict", "done": 1, "total": 1}


def test_generating_and_the_recipe_in_the_file(worker: Worker) -> None:
    job = worker.job(JobSpec("generate", "sd", GENERATE | {"count": 2, "negative": "grey"}, size=SIZE, previews=1))
    done = worker.run_to_result(job)
    assert done["recipe"] == {
        "enlarger": enlarger.__version__, "task": "generate", "model": "sd", "seeds": [7, 8], "input": None,
        "options": {
            "prompt": "a boat", "negative": "grey", "steps": 3, "guidance": 7.5, "rescale": 0.0, "count": 2,
            "solver": "plms", "long_prompt": True, "width": 48, "height": 40, "upscale": 1.0,
        },
    }  # fmt: skip
    assert done["tokens"] == 2 and done["notes"] == [] and [one["seed"] for one in done["images"]] == [7, 8]
    progress = [
        (event["stage"], event["done"], event["total"])
        for event in worker.seen
        if event["event"] == "progress" and event["id"] == job["id"]
    ]
    assert progress[-1] == ("denoise", progress[-1][2], progress[-1][2])
    assert ("denoise", progress[-1][2] // 2, progress[-1][2]) in progress
    previews = [event["index"] for event in worker.seen if event["event"] == "preview" and event["id"] == job["id"]]
    assert previews == [0] and opened(worker, job, "preview-0.png").size == SIZE
    second = result(worker, job, 1)
    recipe = read_metadata(second)
    assert recipe is not None and recipe["seeds"] == [8]
    assert second.info["parameters"].splitlines()[:2] == ["a boat", "Negative prompt: grey"]
    again = worker.job(JobSpec(recipe["task"], recipe["model"], recipe["options"] | {"seed": recipe["seeds"][0]}))
    worker.run_to_result(again)
    assert (pixels(result(worker, again)) == pixels(second)).all()
    expected = enlarger.generate(model=tiny.sd1_folder(), device="cpu", **(GENERATE | {"negative": "grey", "seed": 8}))
    assert (pixels(expected.image) == pixels(second)).all()


def test_one_model_serves_three_tasks(worker: Worker) -> None:
    loads = sum(event["event"] == "loading" and event["model"] == "sd" for event in worker.seen)
    image, mask = tiny.picture(*SIZE), Image.new("L", SIZE)
    mask.paste(255, (8, 8, 32, 32))
    options = {"prompt": "a cat", "steps": 2, "seed": 3}
    inpaint = worker.job(JobSpec("inpaint", "sd", options, "image.png", "mask.png", SIZE, live=True), image, mask)
    done = worker.run_to_result(inpaint)
    found = result(worker, inpaint)
    (changed,) = done["changed"]
    assert 0 < changed["pixels"] <= 24 * 24 and changed["box"][0] >= 8 and changed["box"][2] <= 32
    assert (pixels(found)[:8] == pixels(image)[:8]).all() and (pixels(found) != pixels(image)).any()
    assert done["recipe"]["input"]["width"] == 48 and len(done["recipe"]["input"]["sha256"]) == 64
    refine = worker.job(JobSpec("refine", "sd", options | {"strength": 0.5, "score": 9}, "image.png", size=SIZE), image)
    assert worker.run_to_result(refine)["notes"] == ["the score changes nothing: sd has no use for it"]
    generate = worker.job(JobSpec("generate", "sd", GENERATE, size=SIZE))
    worker.run_to_result(generate)
    after = sum(event["event"] == "loading" and event["model"] == "sd" for event in worker.seen)
    assert after <= max(loads, 1)


def test_a_refiner_finishes_and_the_bundled_model_enlarges(worker: Worker) -> None:
    options = GENERATE | {"refiner": True, "upscale": 1.5, "score": 7.0}
    job = worker.job(JobSpec("generate", "xl", options, size=(72, 60)))
    done = worker.run_to_result(job)
    place = {"model": tiny_xl.base_folder(), "refiner": tiny_xl.refiner_folder(), "device": "cpu"}
    expected = enlarger.generate(**place, **(GENERATE | {"upscale": 1.5, "score": 7.0}))
    assert (pixels(result(worker, job)) == pixels(expected.image)).all()
    assert done["recipe"]["options"]["refiner"] == "refiner" and done["recipe"]["options"]["score"] == 7.0


@pytest.mark.parametrize(
    ("output", "mode", "notes"),
    [
        (
            OutputOptions("jpeg", 90),
            "RGBA",
            ["jpeg has no transparency: the picture is laid on white; PNG and WebP keep it"],
        ),
        (OutputOptions("webp"), "RGBA", []),
        (OutputOptions("webp"), "I;16", ["webp holds 8 bits: the 16-bit grey is rounded; PNG keeps it"]),
        (OutputOptions("png"), "I;16", []),
        (OutputOptions("png"), "LA", []),
    ],
)
def test_formats(worker: Worker, output: OutputOptions, mode: str, notes: list[str]) -> None:
    image = tiny.picture(24, 20).convert("L" if mode in ("LA", "I;16") else "RGB")
    if mode == "I;16":
        image = Image.fromarray(np.array(image).astype(np.uint16) * 257)
    elif mode != "L":
        image = image.convert(mode)
        image.putalpha(tiny.picture(24, 20, 1).convert("L"))
    job = worker.job(upscale(output=output, size=(50, 40)), image)
    done = worker.run_to_result(job)
    found = result(worker, job)
    kept = {"jpeg": "RGB", "webp": "RGB" if mode == "I;16" else "RGBA", "png": mode}[output.format]
    assert (found.format, found.mode, found.size) == (output.format.upper(), kept, (50, 40))
    said = [note for note in done["notes"] if "the model made" not in note]
    assert said == notes and "the model made 48 x 40 pixels, resized to 50 x 40" in done["notes"]
    assert read_metadata(found) == done["recipe"]


def test_jobs_that_are_alike_share_a_batch(worker: Worker) -> None:
    asks = [JobSpec("generate", "sd", GENERATE | {"seed": seed}, size=SIZE, live=True) for seed in (7, 11, 12)]
    jobs = [worker.job(spec) for spec in asks]
    events = worker.run(*jobs)
    assert [e["size"] for e in events if e.get("name") == "batch"] == [3]
    assert {e["id"] for e in events if e["event"] == "done"} == {job["id"] for job in jobs}
    alone = worker.job(asks[1])
    worker.run_to_result(alone)
    assert np.abs(pixels(result(worker, alone)) - pixels(result(worker, jobs[1]))).max() <= 1


def test_one_job_of_a_batch_is_canceled_and_one_cannot_be_done(worker: Worker) -> None:
    asks = [JobSpec("generate", "sd", GENERATE | {"steps": 60, "seed": seed}, size=SIZE) for seed in (1, 2)]
    jobs = [*(worker.job(spec) for spec in asks), worker.job(JobSpec("refine", "sd", {"seed": 1}, "image.png"))]
    worker.send(command="run", jobs=jobs)
    worker.until("progress", id=jobs[0]["id"])
    worker.send(command="cancel", id=jobs[0]["id"])
    worker.until("canceled", id=jobs[0]["id"])
    worker.until("done", id=jobs[1]["id"])
    problem = worker.until("failed", id=jobs[2]["id"])["problem"]
    assert problem["status"] == 400 and problem["message"].startswith("image.png of the job cannot be read")
    worker.until("idle")
    assert not list(worker.folder(jobs[0]).iterdir())


def test_a_cancel_is_heard_within_a_step(worker: Worker) -> None:
    job = worker.job(JobSpec("generate", "sd", GENERATE | {"steps": 900, "width": 128, "height": 128}, size=(128, 128)))
    worker.send(command="run", jobs=[job])
    worker.until("progress", id=job["id"])
    start = time.monotonic()
    worker.send(command="cancel", id=job["id"])
    worker.until("canceled", id=job["id"])
    worker.until("idle")
    assert time.monotonic() - start < 1
    worker.send(command="cancel", id=job["id"])  # late: of no effect
    worker.run_to_result(worker.job(upscale(), tiny.picture(16, 16)))


def test_a_broken_model_and_odd_options_fail_and_no_more(worker: Worker) -> None:
    problem = worker.run_to_problem(worker.job(JobSpec("generate", "broken", GENERATE)))
    assert (problem["status"], problem["code"]) == (500, "model_unusable") and "/nowhere/at all" in problem["message"]
    problem = worker.run_to_problem(worker.job(JobSpec("generate", "nothing", GENERATE)))
    assert (problem["status"], problem["code"]) == (404, "model_not_found")
    problem = worker.run_to_problem(worker.job(JobSpec("generate", "paint", GENERATE)))
    assert problem["code"] == "unsupported" and problem["message"] == "paint cannot generate; it can inpaint"
    problem = worker.run_to_problem(worker.job(JobSpec("generate", "sd", GENERATE | {"steps": 0})))
    assert problem["code"] == "invalid_value" and problem["message"] == "steps is 0, expected 1 to 1000"
    problem = worker.run_to_problem(worker.job(JobSpec("generate", "sd", GENERATE | {"colour": "red"})))
    assert "'colour'" in problem["message"]
    worker.run_to_result(worker.job(upscale(), tiny.picture(16, 16)))


def test_a_finished_job_is_not_done_again_nor_overwritten(worker: Worker) -> None:
    job = worker.job(upscale(), tiny.picture(16, 16))
    before = worker.run_to_result(job)
    events = [e["event"] for e in worker.run(job) if e.get("id") == job["id"]]
    assert events == ["started", "done"]
    assert json.loads((worker.folder(job) / RESULT_FILE).read_text()) == before


def test_loading_and_unloading(worker: Worker) -> None:
    worker.send(command="unload", model="sd")
    worker.send(command="load", model="x2")
    loaded = worker.until("models")["loaded"]
    while "x2" not in loaded:
        loaded = worker.until("models")["loaded"]
    assert loaded["x2"] > 100_000 and "sd" not in loaded
    worker.send(command="load", model="broken")
    assert "/nowhere/at all" in worker.until("models")["errors"]["broken"]
    worker.until("idle")


def test_the_x2_upscaler(worker: Worker) -> None:
    options = {"prompt": "a boat", "steps": 8, "guidance": 2.0, "detail": 0.5, "by": 2, "seed": 0}
    job = worker.job(JobSpec("upscale", "x2", options, "image.png", previews=2, live=True), tiny.picture(40, 30))
    done = worker.run_to_result(job)
    assert done["notes"] == ["detail changes nothing: x2 has no use for it"] and done["tokens"] == 2
    for k in range(2):
        assert opened(worker, job, f"preview-{k}.png").size == (80, 60)
    assert done["recipe"]["options"] == {
        "by": 2, "prompt": "a boat", "negative": "", "steps": 8, "guidance": 2.0, "count": 1, "noise_level": 0.0,
        "solver": "unipc", "long_prompt": False,
    }  # fmt: skip


def test_the_process_ends_with_its_standard_input(tmp_path: Path) -> None:
    with working(tmp_path, *MODELS[:2]) as worker:
        job = worker.job(
            JobSpec("generate", "sd", GENERATE | {"steps": 900, "width": 256, "height": 256}, size=(256, 256))
        )
        worker.send(command="run", jobs=[job])
        worker.until("progress", id=job["id"])
        start = time.monotonic()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert worker.process.wait(5) == 0 and time.monotonic() - start < 1
        assert "Error" not in worker.log.read_text()
