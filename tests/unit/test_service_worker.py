"""The worker's parts: what models are, the cache, requests, recipes, files, previews, and what becomes of faults."""

import json
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from enlarger.checkpoint.families import KINDS
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.checkpoint.single_file.save import save_single_file
from enlarger.diffusion.sample import Step
from enlarger.errors import Cancelled, InputError, NonFinite
from enlarger.image import generation
from enlarger.nn.clip_text import ClipText, ClipTextOutput
from enlarger.nn.taesd import AutoencoderTiny, AutoencoderTinyConfig
from enlarger.service.jobs.job import RESULT_FILE, JobResult, JobSpec, OutputOptions, job_folder, new_job_id
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.problems import ProblemError, problem_from_exception
from enlarger.service.settings import GIB, ModelSettings
from enlarger.service.worker import executor, generation_metadata, main, results
from enlarger.service.worker.executor import Executor, log_error, problem_for
from enlarger.service.worker.model_cache import ModelCache, weight_bytes
from enlarger.service.worker.model_description import describe_model
from enlarger.service.worker.model_requests import build_requests
from enlarger.service.worker.previews import PreviewDecoder, PreviewSpec, PreviewWriter, preview_decoder_for
from enlarger.service.worker.progress_reporter import ProgressReporter, RunningJob
from enlarger.service.workers.messages import AssignedJob, Cancel, Event, Run
from enlarger.tasks.auxiliary.preview import Previewer
from enlarger.tasks.results.result import Progress
from tests.support import tiny, tiny_models, tiny_x4, tiny_xl
from tests.support.random_weights import normal, randomise
from tests.support.single import tiny_single

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
CPU = torch.device("cpu")
BUNDLED = ModelSettings(name="bundled", path="bundled")
SD = ModelSettings(name="sd", path=str(tiny.sd1_folder()))
X2 = ModelSettings(name="x2", path=str(tiny.x2_folder()))
X4 = ModelSettings(name="x4", path=str(tiny_x4.x4_folder()))
GENERATE = {"prompt": "a boat", "width": 32, "height": 24, "steps": 2, "seed": 1, "long_prompt": True}


class SentMessages:
    """All that was told."""

    def __init__(self) -> None:
        self.events = list[dict[str, Any]]()

    def __call__(self, event: Event) -> None:
        self.events.append(event.model_dump())

    def of(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event and fields.items() <= one.items()]


@pytest.fixture(scope="module")
def shared() -> ModelCache:
    """One cache for those that need no other: loading takes long."""
    return ModelCache([BUNDLED, SD, X2, X4], CPU, None, SentMessages())


@pytest.fixture
def bench(shared: ModelCache) -> Executor:
    shared.unload("x2")
    shared.send = SentMessages()
    return Executor(shared, shared.send)


def sent_by(bench: Executor) -> SentMessages:
    assert isinstance(bench.send, SentMessages)
    return bench.send


def cache_of(*settings: ModelSettings, memory: float | None = None) -> tuple[ModelCache, SentMessages]:
    sent = SentMessages()
    return ModelCache(settings, CPU, memory, sent), sent


def running(place: Path, job_spec: JobSpec, sent: SentMessages, image: Image.Image | None = None) -> RunningJob:
    folder = job_folder(place, new_job_id())
    folder.mkdir(parents=True)
    if image is not None:
        image.save(folder / "image.png")
    return RunningJob(folder.name, job_spec, folder, sent, threading.Event())


@pytest.mark.parametrize(
    ("path", "kind", "tasks"),
    [
        ("bundled", "bundled", ["upscale"]),
        (tiny.x2_folder, "x2", ["upscale"]),
        (tiny_x4.x4_folder, "x4", ["upscale"]),
        (tiny.sd1_folder, "sd", ["generate", "refine", "inpaint"]),
        (tiny.inpaint_folder, "sd-inpaint", ["inpaint"]),
        (tiny.depth_folder, "depth", ["refine"]),
        (tiny_xl.base_folder, "sdxl", ["generate", "refine", "inpaint"]),
        (tiny_xl.inpaint_folder, "sdxl-inpaint", ["inpaint"]),
        (tiny_xl.refiner_folder, "sdxl-refiner", ["refine"]),
    ],
)
def test_a_folder_is_described_and_its_size_foretold(path: Any, kind: str, tasks: list[str]) -> None:
    settings = ModelSettings(name="one", path=path if isinstance(path, str) else str(path()), aliases=("other",))
    about = describe_model(settings, CPU)
    unused = next(one.unused_options for one in KINDS.values() if one.service_kind == kind)
    state = about.state
    steps = {"upscale": 12 if kind == "x2" else 75, "generate": 50, "refine": 50, "inpaint": 50}
    assert state.default_steps == ({} if kind == "bundled" else {task: steps[task] for task in tasks})
    found = replace(state, default_size=None, default_steps={})
    assert found == ModelState("one", kind, tuple(tasks), ("other",), unused_options=unused)
    cache, _ = cache_of(settings)
    (loaded,) = cache.get("one")
    estimator = weight_bytes(getattr(loaded.task_for(tasks[0]), "estimator", None))
    assert about.num_bytes is not None and loaded.num_bytes - estimator == pytest.approx(about.num_bytes, rel=0.01)


def test_a_single_file_is_described(tmp_path: Path) -> None:

    path = save_single_file(tiny_single("sd1", tmp_path), tmp_path / "one.safetensors")
    about = describe_model(ModelSettings(name="one", path=str(path), precision="bfloat16"), CPU)
    assert (about.kind, about.error) == ("sd", None)
    parts = [part for part in read_single_file(path).components.values() if isinstance(part, torch.nn.Module)]
    assert about.num_bytes == pytest.approx(weight_bytes(tuple(parts)) / 2, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "/nowhere"}, "/nowhere: no such"),
        ({"path": str(tiny.sd1_folder() / "unet")}, "no model_index.json; expected a model's folder"),
        ({"path": "bundled", "variant": "fp16"}, "the bundled model has no variant; leave that out"),
        ({"path": "bundled", "precision": "float16"}, "but the bundled model runs in float32"),
        ({"path": str(tiny.sd1_folder()), "loras": (("/no/lora", 1.0),)}, "/no/lora: no such file; one names it"),
        ({"path": str(tiny.sd1_folder()), "preview": "/no/taesd"}, "/no/taesd: no such file; one names it"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(settings: dict[str, Any], words: str) -> None:
    about = describe_model(ModelSettings(name="one", **settings), CPU)
    assert about.error is not None and words in about.error and about.state.tasks == ()


def test_damaged_files_do_not_cost_the_other_models(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "X", "unet": 5, "vae": [], "text_encoder": [null, null]}'
    )
    assert "holds a X" in str(describe_model(ModelSettings(name="one", path=str(tmp_path)), CPU).error)
    (tmp_path / "file.safetensors").write_bytes(b"\xff" * 100)
    assert describe_model(ModelSettings(name="one", path=str(tmp_path / "file.safetensors")), CPU).error is not None


def batch_of(place: Path, *names: str) -> tuple[list[ModelSettings], float]:
    """Equal models, and the GiB that one takes."""
    path = str(tiny_models.x2_folder(place))
    settings = [ModelSettings(name=name, path=path) for name in names]
    return settings, (describe_model(settings[0], CPU).num_bytes or 0) / GIB


def test_a_model_whose_file_was_written_to_is_loaded_anew(tmp_path: Path) -> None:
    models, _ = batch_of(tmp_path, "a")
    cache, sent = cache_of(*models)
    (first,) = cache.get("a")
    assert cache.get("a") == (first,)
    file = Path(models[0].path) / "vae" / "diffusion_pytorch_model.safetensors"
    written = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(written + 10**9, written + 10**9))
    (again,) = cache.get("a")
    assert again != first and [one["model"] for one in sent.of("loading")] == ["a", "a"]
    copied, _ = cache_of(models[0].model_copy(update={"mmap": False}))
    (kept,) = copied.get("a")
    file.write_bytes(b"")
    assert copied.get("a") == (kept,)


def test_the_longest_unused_model_goes_first(tmp_path: Path) -> None:
    models, each = batch_of(tmp_path, "a", "b", "c")
    cache, sent = cache_of(*models, memory=2.1 * each)
    cache.get("a")
    cache.get("b")
    (first,) = cache.get("a")
    cache.get("c")
    assert list(cache.loaded_bytes) == ["a", "c"] and sum(cache.loaded_bytes.values()) <= 2.1 * each * GIB
    assert cache.get("a") == (first,) and list(cache.loaded_bytes) == ["c", "a"]
    assert [one["model"] for one in sent.of("loading")] == ["a", "b", "c"]
    assert sent.of("models")[-1]["loaded"] == dict(cache.loaded_bytes)
    assert sent.of("measured", name="model_load", model="c")[0]["seconds"] > 0


def test_models_that_are_kept_or_at_work_stay(tmp_path: Path) -> None:
    (a, b, c), each = batch_of(tmp_path, "a", "b", "c")
    cache, _ = cache_of(a.model_copy(update={"keep": True}), b, c, memory=2.1 * each)
    cache.get("a", "b")
    cache.unload_others("b")
    assert set(cache.loaded_bytes) == {"a", "b"}
    with pytest.raises(
        ProblemError, match=r"the weights of c take .* MiB beside .* MiB of a, b, and at most .* MiB are kept"
    ):
        cache.get("b", "c")
    cache.get("c")
    assert set(cache.loaded_bytes) == {"a", "c"}
    cache.unload("c", "nothing")
    assert set(cache.loaded_bytes) == {"a"}


def test_a_model_larger_than_the_memory_is_refused_unread() -> None:
    cache, sent = cache_of(SD, BUNDLED, memory=1e-5)
    with pytest.raises(
        ProblemError, match=r"the weights of sd take [\d.]+ MiB, and at most 0.0 MiB are kept; raise"
    ) as found:
        cache.get("sd")
    assert (found.value.problem.status, found.value.problem.code) == (500, "out_of_memory")
    assert sent.of("models") == [] and cache.loaded_bytes == {}


def test_one_model_makes_three_tasks(shared: ModelCache) -> None:
    (loaded,) = shared.get("sd")
    assert all(loaded.task_for(verb).model is loaded.model for verb in ("generate", "refine", "inpaint"))  # type: ignore[union-attr]
    with pytest.raises(Exception, match="sd cannot upscale; it can generate, refine, inpaint"):
        loaded.task_for("upscale")
    with pytest.raises(Exception, match="bundled is an upscaler, expected a refiner"):
        _ = shared.get("bundled")[0].refiner


def test_what_a_model_has_no_use_for_is_said(tmp_path: Path, shared: ModelCache) -> None:
    job_spec = JobSpec(
        "upscale", "bundled", {"by": 2, "guidance": 0.0, "negative": "", "steps": 3, "detail": 0.5}, "image.png"
    )
    job = running(tmp_path, job_spec, SentMessages(), tiny.picture(20, 10))
    wanted = build_requests(job_spec, shared.get("bundled")[0], job.folder)
    assert wanted.notes == tuple(f"{name} changes nothing: bundled has no use for it" for name in ("steps", "guidance"))
    assert wanted.options == {"by": 2, "count": 1, "detail": 0.5, "restore": 0.0}
    batch_of = replace(job_spec, options={"by": 2, "count": 3, "restore": 0.25})
    wanted = build_requests(batch_of, shared.get("bundled")[0], job.folder)
    assert wanted.notes == ("count is 3, but the bundled model has one answer for a picture: one was made",)
    assert len(wanted.requests) == 1 and wanted.options == {"by": 2, "count": 1, "detail": 0.0, "restore": 0.25}
    plain = replace(job_spec, options={"by": 2, "solver": "heun", "long_prompt": True})
    wanted = build_requests(plain, shared.get("bundled")[0], job.folder)
    assert wanted.notes == ("the solver changes nothing: bundled has no use for it",) and wanted.num_prompt_tokens == 0
    assert wanted.is_batchable and wanted.input_info is not None and len(wanted.input_info["sha256"]) == 64
    made = JobSpec("generate", "sd", {"prompt": "a boat " * 100, "count": 3, "seed": 2**64 - 3, "score": 3.0})
    wanted = build_requests(made, shared.get("sd")[0], job.folder)
    assert wanted.seeds == (2**64 - 3, 2**64 - 2, 2**64 - 1) and [one.count for one in wanted.requests] == [1, 1, 1]
    assert wanted.num_prompt_tokens == 200 and not wanted.is_batchable and wanted.options["width"] == 64
    with pytest.raises(InputError, match="refiner is true, but sd has none in the settings"):
        build_requests(JobSpec("generate", "sd", {"prompt": "", "refiner": True}), shared.get("sd")[0], job.folder)


LONG = "x" * 32_000


def recipe(**options: Any) -> dict[str, Any]:
    return generation_metadata.generation_metadata("1.0", "generate", "sd", options, [7, 8], None)


def test_other_programs_can_read_the_parameters() -> None:
    found = generation.a1111_parameters(
        recipe(prompt="a\0boat", negative="grey", steps=20, solver="euler_ancestral", guidance=7.5, strength=0.3),
        (64, 48),
    )
    assert found == (
        "a boat\nNegative prompt: grey\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 7, Size: 64x48, Model: sd, "
        "Denoising strength: 0.3, Version: enlarger 1.0"
    )
    assert generation_metadata.metadata_of_image(recipe(count=2), 1)["seeds"] == [8] and recipe(count=2)["seeds"] == [
        7,
        8,
    ]
    assert generation_metadata.metadata_of_image(recipe(count=2), 1)["options"]["count"] == 1


def test_other_programs_read_how_a_picture_was_enlarged() -> None:
    def text(task: str, **options: Any) -> str:
        said = generation_metadata.generation_metadata("1.0", task, "sd", options, [7], None)
        return generation.a1111_parameters(said, (96, 75)).splitlines()[-1]

    remade = "Seed: 7, Size: 64x50, Model: sd, Denoising strength: {}, Hires upscale: 1.5, Version: enlarger 1.0"
    assert text("generate", upscale=1.5, tile=True) == remade.format(0.3)
    assert text("generate", upscale=1.5, tile=True, upscale_strength=0.0) == remade.format(0.0)
    assert text("generate", upscale=1.5) == remade.replace("Denoising strength: {}, ", "")
    for plain in (text("upscale", by=1.5), text("generate", upscale=1.0)):
        assert plain == "Seed: 7, Size: 96x75, Model: sd, Version: enlarger 1.0"


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(
    "prompt", ["a boat", "a bøat, 船", "nul \0, half \ud800, line\nbreak", "x" * 32_000, "船" * 32_000]
)
def test_a_recipe_comes_back_from_the_file(tmp_path: Path, format: Any, prompt: str) -> None:
    said = recipe(prompt=prompt, count=1)
    about, notes = results.save_image(tiny.picture(24, 16), 0, tmp_path, OutputOptions(format), said)
    with Image.open(tmp_path / about.file) as image:
        found = generation.read_metadata(image)
        size = image.size
    fits = not (format == "jpeg" and len(json.dumps(prompt)) > 65_000)
    assert found == (said if fits else None) and size == (24, 16) and about.seed == 7
    assert notes == (() if fits else ("the generation metadata is too long for a JPEG file: left out; PNG holds it",))
    assert [path.name for path in tmp_path.iterdir()] == [about.file]


def test_a_file_without_a_recipe(tmp_path: Path) -> None:
    for text in (None, "[1]", "no JSON"):
        info = PngImagePlugin.PngInfo()
        if text is not None:
            info.add_itxt("enlarger", text)
        tiny.picture(8, 8).save(tmp_path / "a.png", pnginfo=info)
        with Image.open(tmp_path / "a.png") as image:
            assert generation.read_metadata(image) is None


def test_the_profile_is_kept_and_nothing_else(tmp_path: Path) -> None:
    image = tiny.picture(8, 8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.info |= {"icc_profile": profile, "comment": b"mine", "parameters": "old"}
    for format in ("png", "jpeg", "webp"):
        about, _ = results.save_image(image, 0, tmp_path, OutputOptions(format), recipe())
        with Image.open(tmp_path / about.file) as found:
            found.load()
            assert found.info["icc_profile"] == profile
            assert "comment" not in found.info and found.info.get("parameters") != "old"


def test_done_is_written_once(tmp_path: Path) -> None:
    results.write_result_file(tmp_path, JobResult(()))
    results.write_result_file(tmp_path, JobResult((), "another"))
    assert json.loads((tmp_path / RESULT_FILE).read_text()) == asdict(JobResult(())) | {"images": [], "notes": []}
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]


def test_a_disk_that_takes_nothing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProblemError, match=r"cannot be stored \(No space left on device\)"):
        results.write_result_file(tmp_path, JobResult(()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_a_result_of_another_size_is_resized_and_that_is_said(mode: str) -> None:
    image = (
        Image.fromarray(np.full((10, 20), 30_000, np.uint16)) if mode == "I;16" else tiny.picture(20, 10).convert(mode)
    )
    found, notes = results.resize_to(image, (31, 17))
    assert (found.mode, found.size) == (mode, (31, 17))
    assert notes == ("the model made 20 x 10 pixels, resized to 31 x 17",)
    assert results.resize_to(image, (20, 10)) == (image, ()) and results.resize_to(image, None) == (image, ())


class Shown:
    """Previews that were shown, with their sizes; and what failed."""

    def __init__(self, folder: Path, model_command: PreviewSpec, painter: PreviewDecoder | None) -> None:
        self.seen, self.failed = list[tuple[int | None, tuple[int, int]]](), list[Exception]()
        self.folder = folder
        self.previews = PreviewWriter(folder, model_command, painter, self.show, self.failed.append)

    def show(self, name: str, index: int | None) -> None:
        with Image.open(self.folder / name) as image:
            self.seen.append((index, image.size))

    def walk(self, total: int, height: int = 6, width: int = 9) -> None:
        for done in range(1, total + 1):
            clean = normal(1, 4, height, width)
            self.previews.update(Progress("denoise", done, total, Step(clean, clean, torch.tensor(0.0))), 0)


def painter() -> PreviewDecoder:
    return PreviewDecoder(lambda clean: Image.new("RGB", (clean.shape[-1], clean.shape[-2])), 8)


@pytest.mark.parametrize(("total", "count"), [(20, 3), (3, 3), (1, 3), (7, 1), (50, 10)])
def test_wanted_previews_come_once_each_and_large(tmp_path: Path, total: int, count: int) -> None:
    shown = Shown(tmp_path, PreviewSpec(count, False, (140, 90), (70, 45)), painter())
    shown.walk(total)
    shown.walk(total)  # the job's second picture
    assert shown.seen == [(k, (140, 90)) for k in range(count)] and shown.failed == []
    assert len(list(tmp_path.iterdir())) == count


def test_live_previews_are_few_and_small(tmp_path: Path) -> None:
    shown = Shown(tmp_path, PreviewSpec(0, True, (1400, 900), (72, 48)), painter())
    shown.walk(500)
    assert shown.seen[0] == (None, (512, 329)) and len(shown.seen) < 10 and len(list(tmp_path.iterdir())) == 1


def test_a_picture_nobody_can_look_into_shows_its_input(tmp_path: Path) -> None:
    for image in (
        tiny.picture(600, 300),
        Image.fromarray(np.zeros((300, 600), np.uint16)),
        Image.new("LA", (600, 300)),
    ):
        shown = Shown(tmp_path, PreviewSpec(2, True, (1200, 600), (600, 300)), None)
        shown.previews.show_input(image)
        shown.walk(5)
        assert shown.seen == [(None, (512, 256))] and shown.failed == []


def test_a_preview_that_fails_is_the_last(tmp_path: Path) -> None:
    shown = Shown(tmp_path, PreviewSpec(3, True), PreviewDecoder(lambda clean: Image.new("nothing", (1, 1)), 8))
    shown.walk(9)
    assert shown.seen == [] and len(shown.failed) == 1


def test_what_fills_latents_up_is_not_shown(tmp_path: Path) -> None:
    def paint(clean: torch.Tensor) -> Image.Image:
        image = Image.new("L", (clean.shape[-1], clean.shape[-2]), 255)
        image.paste(0, (0, 0, 5, 3))
        return image

    for model_command in (
        PreviewSpec(1, False, (40, 24), (40, 24)),
        PreviewSpec(1, False, (40, 24), (20, 12), is_upscale=True),
    ):
        shown = Shown(tmp_path, model_command, PreviewDecoder(paint, 8))
        shown.walk(2, 4, 8)
        with Image.open(tmp_path / "preview-0.png") as image:
            assert image.size == (40, 24) and np.array(image)[:16, :32].max() == 0


def test_painters(shared: ModelCache) -> None:
    bundled, sd, x2, x4 = shared.get("bundled", "sd", "x2", "x4")
    assert preview_decoder_for(bundled) is None and preview_decoder_for(x4) is None
    clean = normal(1, 4, 6, 9)
    for loaded in (sd, x2):
        found = preview_decoder_for(loaded)
        assert found is not None and found.factor == 8 and found.decode(clean).size == (9, 6)
    decoder = randomise(AutoencoderTiny(AutoencoderTinyConfig(8, encoder_blocks=(1, 1), decoder_blocks=(1, 1)))).decoder
    found = preview_decoder_for(replace(sd, previewer=Previewer(decoder)))
    assert found is not None and found.decode(clean).size == (18, 12)


def test_progress_counts_over_all_pictures_and_is_not_told_too_often(tmp_path: Path) -> None:
    sent = SentMessages()
    job = running(tmp_path, JobSpec("generate", "sd"), sent)
    shown = PreviewWriter(job.folder, PreviewSpec(0, False), None, lambda name, index: None, lambda error: None)
    for call in range(2):
        watcher = ProgressReporter(sent, [job], [shown], call, 2)
        clean = torch.zeros(1, 4, 1, 1)
        for done in range(1, 301):
            watcher(Progress("denoise", done, 300, Step(clean, clean, clean)))
        assert set(watcher.finish()) == {"denoise", "decode"}
    found = [(one["done"], one["total"]) for one in sent.of("progress")]
    assert found[0] == (1, 600) and (300, 600) in found and found[-1] == (600, 600) and 4 <= len(found) < 20
    assert found == sorted(found) and sent.of("measured", name="step", model="sd")


def test_the_last_cancel_of_a_batch_stops_it(tmp_path: Path) -> None:
    sent = SentMessages()
    jobs = [running(tmp_path, JobSpec("generate", "sd"), sent) for _ in range(2)]
    shown = [
        PreviewWriter(job.folder, PreviewSpec(0, False), None, lambda name, index: None, lambda error: None)
        for job in jobs
    ]
    watcher = ProgressReporter(sent, jobs, shown)
    jobs[0].cancel_event.set()
    watcher(Progress("denoise", 1, 3))
    assert [one["id"] for one in sent.of("canceled")] == [jobs[0].id]
    assert [one["id"] for one in sent.of("progress")] == [jobs[1].id]
    jobs[1].cancel_event.set()
    with pytest.raises(Cancelled):
        watcher(Progress("denoise", 2, 3))
    jobs[0].finish("done")
    assert len(sent.of("canceled")) == 2 and sent.of("done") == []


def test_a_prompt_of_too_many_tokens_is_refused_before_it_is_encoded(bench: Executor, tmp_path: Path) -> None:
    for field in ("prompt", "negative"):
        options = {"prompt": "a", "steps": 1, "long_prompt": True} | {field: "a " * 1501}
        job = running(tmp_path, JobSpec("generate", "sd", options), sent_by(bench))
        bench.run([job])
        (failed,) = sent_by(bench).of("failed", id=job.id)
        assert failed["problem"]["code"] == "invalid_prompt"
        assert "tokens, expected at most 1,500; say it in fewer words" in failed["problem"]["message"]


def test_encoding_a_long_prompt_hears_a_cancel(
    bench: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"prompt": "lighthouse " * 300, "steps": 1, "long_prompt": True}
    job, calls, forward = (
        running(tmp_path, JobSpec("generate", "sd", options), sent_by(bench)),
        list[int](),
        ClipText.forward,
    )

    def encode(self: ClipText, ids: torch.Tensor) -> ClipTextOutput:
        calls.append(len(ids))
        job.cancel_event.set()
        return forward(self, ids)

    monkeypatch.setattr(ClipText, "forward", encode)
    bench.run([job])
    assert len(calls) == 1 and len(sent_by(bench).of("canceled", id=job.id)) == 1


def faulty(monkeypatch: pytest.MonkeyPatch, errors: Sequence[Exception | None]) -> list[int]:
    """The computing raises these, one after another; gives the sizes of the batches that were tried."""
    before, left, tried = executor.run_in_batches, list(errors), list[int]()

    def run_in_batches(task: Any, requests: Any, watch: Any) -> Any:
        tried.append(len(requests))
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return before(task, requests, watch)

    monkeypatch.setattr(executor, "run_in_batches", run_in_batches)
    return tried


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: x"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_what_memory_does_not_suffice_for_is_tried_with_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Executor, error: Exception
) -> None:
    sent, cache = sent_by(bench), bench.model_cache
    cache.get("x2")
    tried = faulty(monkeypatch, [error])
    jobs = [
        running(tmp_path, JobSpec("generate", "sd", GENERATE | {"seed": seed}, size=(32, 24)), sent)
        for seed in range(3)
    ]
    bench.run(jobs)
    assert tried == [3, 1, 1, 1] and len(sent.of("done")) == 3 and list(cache.loaded_bytes) == ["sd"]
    assert [one["fallback"] for one in sent.of("measured", name="oom")] == ["single"]


def test_one_job_is_tried_twice_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Executor
) -> None:
    sent = sent_by(bench)
    tried = faulty(monkeypatch, [NO_MEMORY[0], NO_MEMORY[0], NO_MEMORY[0]])
    jobs = [running(tmp_path, JobSpec("generate", "sd", GENERATE), sent) for _ in range(3)]
    for job in jobs:
        bench.run([job])
    assert tried == [1, 1, 1, 1, 1]
    assert [one["fallback"] for one in sent.of("measured", name="oom")] == ["retry", "none", "retry"]
    (failed,) = sent.of("failed")
    assert failed["id"] == jobs[0].id and failed["problem"]["code"] == "out_of_memory"
    assert [one["id"] for one in sent.of("done")] == [jobs[1].id, jobs[2].id]


def test_an_error_in_a_batch_costs_only_its_own_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Executor
) -> None:
    sent = sent_by(bench)
    tried = faulty(monkeypatch, [NonFinite("the picture"), None, NonFinite("the picture")])
    jobs = [
        running(tmp_path, JobSpec("generate", "sd", GENERATE | {"seed": seed}, size=(32, 24)), sent)
        for seed in range(3)
    ]
    bench.run(jobs)
    assert tried == [3, 1, 1, 1] and [one["id"] for one in sent.of("done")] == [jobs[0].id, jobs[2].id]
    assert sent.of("failed")[0]["problem"]["code"] == "non_finite_output"
    assert len(sent.of("measured", name="nonfinite")) == 2
    assert list(jobs[1].folder.iterdir()) == []


def test_prompts_that_are_cut_are_said_to_their_own_user_alone(tmp_path: Path, bench: Executor) -> None:
    sent = sent_by(bench)
    options = [GENERATE | {"long_prompt": False, "prompt": word * 100} for word in ("mine ", "yours ")]
    jobs = [running(tmp_path, JobSpec("generate", "sd", each, size=(32, 24)), sent) for each in options]
    bench.run(jobs)
    notes = [json.loads((job.folder / RESULT_FILE).read_text())["notes"] for job in jobs]
    assert all("the prompt is longer than 75 tokens" in one[0] and len(one) == 1 for one in notes)
    assert "yours" not in notes[0][0] and "mine" not in notes[1][0]
    assert [one["size"] for one in sent.of("measured", name="batch")] == [1, 1]


def test_errors_say_no_path_of_the_job_and_the_log_no_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = sent_by(bench)
    job = running(tmp_path, JobSpec("generate", "sd", GENERATE), sent)
    faulty(monkeypatch, [InputError(f"{job.folder}/image.png: odd {'x' * 2000}"), ValueError("a secret prompt")])
    bench.run([job])
    bench.run([other := running(tmp_path, JobSpec("generate", "sd", GENERATE), sent)])
    first, second = (one["problem"]["message"] for one in sent.of("failed"))
    assert first.startswith("image.png: odd xxx") and len(first) < 1100
    assert second == "unexpected ValueError; the log of the service says where" and other.is_finished
    line = json.loads(capsys.readouterr().err)
    assert (
        line["error"] == "ValueError"
        and "secret" not in str(line)
        and any("run_in_batches" in one for one in line["frames"])
    )
    log_error("lost", OSError(28, "No space left"))
    assert "No space left" in json.loads(capsys.readouterr().err)["message"]


def test_errors_of_memory_are_known_by_their_words() -> None:
    assert {problem_for(error).code for error in (*NO_MEMORY, MemoryError())} == {"out_of_memory"}
    assert problem_for(RuntimeError("shapes differ")).code == "internal"


def test_the_inbox_hears_cancels_while_work_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended: list[int] = []
    monkeypatch.setattr(main.os, "_exit", ended.append)
    inbox, id = main.MessageReader(main.MessageWriter(1)), new_job_id()
    run = Run(jobs=(AssignedJob(id=id, spec=JobSpec("upscale", "bundled", image="image.png")),))
    inbox.listen(command.encode() for command in (run, Cancel(id=id), Cancel(id=new_job_id())))
    assert ended == [0]
    (job,) = inbox.running_jobs(inbox.commands.get(), tmp_path)
    assert job.cancel_event.is_set() and job.folder == job_folder(tmp_path, id) and inbox.commands.empty()
    inbox.remove_jobs([job])
    with pytest.raises(ValueError, match="Invalid JSON"):
        inbox.listen([b"no JSON"])
    assert ended == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "no solver here stands for it"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"thresholding": True}, "thresholding"),
        ({"beta_start": 2.0}, "beta_start and beta_end"),
    ],
    ids=["class", "betas", "thresholding", "start"],
)
def test_a_scheduler_that_cannot_be_used_is_no_fault_of_the_caller(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(tiny.sd1_folder(), tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", settings.get("_class_name", index["scheduler"][1])]
    (folder / "model_index.json").write_text(json.dumps(index))
    cache, _ = cache_of(ModelSettings(name="sd", path=str(folder)))
    with pytest.raises(Exception, match=message) as raised:
        cache.get("sd")
    problem = problem_from_exception(raised.value)
    assert (problem.status, problem.code) == (500, "model_unusable")
