"""A plan is what then happens: calls, windows, tiles; its memory keeps the bound; its times are kept on disk."""

import json
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from enlarger import (
    DepthRequest,
    GenerateRequest,
    InpaintRequest,
    InputError,
    OutOfMemory,
    RefineRequest,
    UpscaleRequest,
    load_depth,
    load_upscaler,
)
from enlarger.cli.main import run
from enlarger.memory_size import parse_memory
from enlarger.runtime import feature_map, memory
from enlarger.runtime.footprint import Cost, count_call, on_meta
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.image_to_image import Refiner
from enlarger.tasks.planning import calibration, network_costs
from enlarger.tasks.planning.calibration import CalibratedTimer, Rates, fit_rates, read_rates, write_rates
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.text_to_image import Generator
from enlarger.tasks.upscale.latent_x2 import LatentUpscaler
from enlarger.tasks.upscale.latent_x2 import load as load_x2
from tests.support import tiny, tiny_x4
from tests.support.tiny_inpaint import inpaint_model, tiny_inpainter
from tests.support.tiny_models import x2_bundle

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


def mask(size: tuple[int, int]) -> Image.Image:
    made = Image.new("L", size, 0)
    made.paste(255, (8, 8, 40, 32))
    return made


PICTURE = tiny.picture(72, 40)


def x2() -> LatentUpscaler:
    with TemporaryDirectory() as place:
        return load_x2(x2_bundle(Path(place)), Runtime(), "x2")


CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "x2": (
        x2,
        UpscaleRequest(PICTURE, 3, steps=2, guidance=2, solver="heun"),
    ),
    "x4": (lambda: load_upscaler(tiny_x4.x4_folder(), "cpu"), UpscaleRequest(PICTURE, 4, steps=2, count=2)),
    "generate": (lambda: Generator(inpaint_model(4)), GenerateRequest("a", width=40, height=32, steps=3)),
    "hires": (
        lambda: Generator(inpaint_model(4)),
        GenerateRequest("a", width=40, height=32, steps=4, upscale=2, tile=True),
    ),
    "refine": (
        lambda: Refiner(inpaint_model(4)),
        RefineRequest(PICTURE, "a", steps=4, strength=0.5, by=2),
    ),
    "inpaint": (
        lambda: tiny_inpainter(9),
        InpaintRequest(PICTURE, mask(PICTURE.size), "a", steps=3, strength=0.8, count=2),
    ),
    "inpaint-crop": (
        lambda: tiny_inpainter(4),
        InpaintRequest(PICTURE, mask(PICTURE.size), "a", steps=3, crop=4),
    ),
    "depth": (
        lambda: load_depth(tiny.depth_folder(), "cpu", estimator=False),
        DepthRequest(PICTURE, "a", steps=4, strength=0.5, depth=Image.new("L", (9, 5), 9)),
    ),
}


def networks_of(task: Any) -> dict[str, nn.Module]:
    """The parts of a loaded task by what a plan calls their stages."""
    model = getattr(task, "model", getattr(task, "checkpoint", task))
    networks = getattr(model, "latent_diffusion", model)
    encoders = getattr(model, "text_encoders", None) or (model.text_encoder,)
    parts = {"network calls": networks.unet, "encode picture": networks.vae.encoder, "decode": networks.vae.decoder}
    return parts | {"encode text": encoders[0]}


def count_calls(task: Any, work: Callable[[], Any]) -> dict[str, int]:
    """How often each network ran during some work."""
    counts = dict.fromkeys(networks_of(task), 0)

    def counting(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    handles = [network.register_forward_hook(counting(name)) for name, network in networks_of(task).items()]
    work()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("name", CASES)
def test_a_plan_says_what_then_happens(name: str) -> None:
    load, request = CASES[name]
    task = load()
    plans: list[Plan] = []
    assert set(count_calls(task, lambda: plans.append(task.plan(request))).values()) == {0}
    planned = dict.fromkeys(networks_of(task), 0)
    for stage in plans[0].stages:
        for part in planned:
            if part in stage.name:
                planned[part] += (stage.calls or 0) * (stage.tiles if part == "network calls" else 1)
    assert count_calls(task, lambda: task(request)) == planned
    assert plans[0].peak > plans[0].weights + plans[0].process and plans[0].seconds is None


@pytest.mark.parametrize("name", ["x2", "x4", "refine", "generate", "inpaint"])
def test_memory_keeps_the_bound_and_falls_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (feature_map, network_costs):
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    load, request = CASES[name]
    task, peaks = load(), list[int]()
    whole = task.plan(replace(request, memory="1TB"))
    base, refused = whole.process + whole.weights, ""
    for share in np.linspace(1.0, 0.0, 15):
        bound = f"{(base + share * (whole.peak - base)) / 1000:.3f}KB"
        try:
            peaks.append(task.plan(replace(request, memory=bound)).peak)
        except InputError as error:
            refused = str(error)
            break
        assert peaks[-1] <= parse_memory(bound).of(0) + 1000
    assert peaks == sorted(peaks, reverse=True) and peaks[0] == whole.peak
    assert refused.startswith(f"memory is {bound}, but the stage '") and "give more, a smaller picture" in refused
    with pytest.raises(InputError, match="give more, a smaller picture, or a lower precision"):
        task(replace(request, memory=bound))


def test_the_bundled_model_takes_smaller_tiles() -> None:
    upscaler, request = load_upscaler(device="cpu"), UpscaleRequest(tiny.picture(200, 140), 2)
    whole = upscaler.plan(request)
    assert [stage.name for stage in whole.stages] == ["read", "predict", "consistency", "write"]
    bound = f"{(whole.process + whole.weights + 0.4 * (whole.peak - whole.process - whole.weights)) / 1000:.0f}KB"
    smaller = upscaler.plan(replace(request, memory=bound))
    assert smaller.peak < whole.peak and next(stage.tiles for stage in smaller.stages if stage.name == "predict") > 1
    seen: list[Any] = []
    made = upscaler(replace(request, memory=bound), seen.append)
    assert len(seen) == next(stage.tiles for stage in smaller.stages if stage.name == "predict")
    assert np.abs(np.int16(made.image) - np.int16(upscaler(request).image)).max() <= 1


def out_of_memory_over(pixels: int, network: nn.Module, error: Exception = NO_MEMORY) -> Callable[..., Any]:
    """The network's `forward`, for which memory suffices up to so many pixels."""
    real = network.forward

    def forward(x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        if x.shape[-2] * x.shape[-1] > pixels:
            raise error
        return real(x, *args, **named)

    return forward


@pytest.mark.parametrize("detail", [0, 0.7])
def test_the_bundled_model_goes_on_where_memory_runs_out(detail: float, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler, request = load_upscaler(device="cpu"), UpscaleRequest(tiny.picture(160, 140), 2, detail=detail)
    expected: Any = upscaler
    expected = np.int16(expected(request).image)
    for network in (upscaler.predictor, upscaler.detailer):  # type: ignore[attr-defined]
        monkeypatch.setattr(network, "forward", out_of_memory_over(130 * 130, network))
    with pytest.warns(
        UserWarning, match=r"^memory ran out in the stage (predict|detail): again in tiles of 64 pixels$"
    ):
        assert np.abs(np.int16(upscaler(request).image) - expected).max() <= 1


def test_a_diffusion_goes_on_in_windows_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, request = Refiner(inpaint_model(4)), RefineRequest(PICTURE, "a", steps=4, strength=0.5)
    network = refiner.model.latent_diffusion.unet
    monkeypatch.setattr(network, "forward", out_of_memory_over(18 * 18, network))
    with pytest.warns(UserWarning, match=r"^memory ran out in denoising: again in tiles of 18 latents$"):
        made = refiner(request)
    assert made.image.size == PICTURE.size
    assert made.notes[-1].startswith("denoised in 6 overlapping windows of 18 latents")
    monkeypatch.setattr(network, "forward", out_of_memory_over(0, network))
    with (
        pytest.warns(UserWarning, match=r"again in tiles of (18|8) latents"),
        pytest.raises(
            OutOfMemory, match=r"^memory ran out in denoising in tiles of 8 latents, which takes .* MB beside"
        ),
    ):
        refiner(request)


def test_counting_leaves_the_network_and_its_hooks_alone() -> None:
    network, seen = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU()), list[int]()
    network.register_forward_hook(lambda *_: seen.append(1))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    cost = count_call(on_meta(network), torch.empty(1, 3, 10, 10, device="meta"))
    assert seen == [] and all(weight.equal(before[name]) for name, weight in network.state_dict().items())
    made = 8 * 8 * 8 * 4
    assert cost.flops == 2 * 3 * 9 * 8 * 64 and cost.operations == 2
    assert cost.peak == made + 3 * 10 * 10 * 4 + made + 8 * 27 * 4  # of the convolution: what it reorders too


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Nothing is measured: what would be is listed. The calibration lies in a folder of the test's own."""
    measured: list[str] = []
    monkeypatch.setenv("ENLARGER_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "sample_calls", lambda kind, *_: measured.append(kind) or [])
    monkeypatch.setattr(calibration, "measure_calls", lambda *_: [(Cost(1, 10**9, 10**6, 10), 1.0)])
    monkeypatch.setattr(calibration, "_timed", lambda *_: 0.5)
    return measured


def test_times_are_measured_once_and_kept(quick: list[str], tmp_path: Path) -> None:
    upscaler, request = load_upscaler(device="cpu"), UpscaleRequest(PICTURE, 4)
    first = upscaler.plan(request, CalibratedTimer())
    assert quick == ["enlarging network"] and first.seconds is not None and first.seconds > 0
    assert upscaler.plan(request, CalibratedTimer()) == first and len(quick) == 1
    assert upscaler.plan(request, CalibratedTimer(renew=True)) == first and len(quick) == 2
    files = sorted((tmp_path / "calibration").glob("*.json"))
    for number, damage in enumerate(["{", "", "[]", '{"version": 1}', files[0].read_text().replace(": 0.0", ": -1.0")]):
        for file in files:
            file.write_text(damage)
        with pytest.warns(UserWarning, match=r"^the calibration .* was damaged, and is made anew$"):
            assert upscaler.plan(request, CalibratedTimer()) == first
        assert len(quick) == 3 + number


def test_a_folder_that_cannot_be_written_to_is_said(quick: list[str], tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text("a file")
    with pytest.warns(UserWarning, match=r"^the calibration cannot be kept in .* \(.*\)$"):
        assert load_upscaler(device="cpu").plan(UpscaleRequest(PICTURE, 2), CalibratedTimer()).seconds


def _write(path: Path, number: int) -> None:
    for _ in range(50):
        write_rates(path, "a key", Rates(float(number), 0.0, 0.0))


def test_processes_that_write_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    path, fork = tmp_path / "rates.json", multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(path, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not path.is_file() or read_rates(path, "a key") in (Rates(1.0, 0.0, 0.0), Rates(2.0, 0.0, 0.0))
    assert [writer.exitcode for writer in writers] == [0, 0] and len(list(tmp_path.iterdir())) == 1


def test_rates_explain_what_was_measured() -> None:
    rates, costs = Rates(0.01, 1e-4, 1e-5), (Cost(0, 10**9, 10**7, 500), Cost(0, 90 * 10**9, 10**9, 500))
    found = fit_rates([(cost, rates.seconds(cost)) for cost in costs], rates.megabyte)
    for cost in costs:
        assert abs(found.seconds(cost) / rates.seconds(cost) - 1) < 1e-6
    assert fit_rates([(costs[0], 0.01)], 1.0).gflop >= 0


def test_what_is_available_heeds_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, text in (("memory.max", "1000"), ("memory.current", "300"), ("memory.stat", "inactive_file 100\n")):
        (tmp_path / "a" / name).write_text(text)
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "GROUPS_OF_PROCESS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert memory.available_bytes(torch.device("cpu")) == 800
    assert memory.room_bytes(None, torch.device("cpu"), 50) == 720
    assert memory.room_bytes("1GB", torch.device("cpu"), 50) == 10**9 - memory.PROCESS_BYTES - 50


def test_the_command_prints_a_table_and_json(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURE.save(tmp_path / "a.png")

    def call(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["enlarger", "plan", "upscale", str(tmp_path / "a.png"), *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        return ended.value.code, capsys.readouterr().out

    code, table = call("--by", "4", "--memory", "4GB")
    assert code == 0 and "72 x 40 -> 288 x 160 with bundled" in table and ", 4GB allowed;" in table
    code, line = call("--json")
    found = json.loads(line)
    assert code == 0 and found["network_calls"] == 0
    assert found["peak"] == max(stage["peak"] for stage in found["stages"])
    code, _ = call("--memory", "20MB")
    assert str(code).startswith("error: memory is 20MB, but the stage 'predict' of 72 x 40 -> 144 x 80 needs ")
    assert [path.name for path in tmp_path.glob("a*")] == ["a.png"]
