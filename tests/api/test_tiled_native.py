"""Enlarging and remaking in overlapping windows: sizes, progress, notes, and the whole where one window covers it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enlarger import (
    Cancelled,
    GenerateRequest,
    InputError,
    Latents,
    Progress,
    RefineRequest,
    Unsupported,
    UpscaleRequest,
    load_generator,
    load_refiner,
    load_upscaler,
)
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.precondition import Scalings
from enlarger.diffusion.sample import sample
from enlarger.diffusion.solvers import SOLVERS
from enlarger.diffusion.windows import WindowedDenoiser, Windows
from enlarger.evaluate.metrics import seam_ratio
from enlarger.runtime import feature_map
from enlarger.tasks.planning import network_costs
from enlarger.tasks.planning.plan import Plan
from tests.support import tiny, tiny_x4, tiny_xl

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


def pixels(image: Any) -> Any:
    return np.array(image, dtype=np.int64)


def bound_for_windows(plan: Plan) -> str:
    """What the network's work takes less of than whole."""
    whole, base = (
        next(stage.peak for stage in plan.stages if stage.name == "network calls"),
        plan.process + plan.weights,
    )
    return f"{(base + 0.7 * (whole - base)) / 1000:.0f}KB"


@pytest.mark.parametrize(("folder", "size", "by"), [(tiny.x2_folder, (200, 96), 2), (tiny_x4.x4_folder, (70, 30), 4)])
def test_upscalers_in_windows(
    folder: Callable[[], Path], size: tuple[int, int], by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (feature_map, network_costs):  # all of the autoencoder's maps are files, so that it needs little
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    upscaler, seen = load_upscaler(folder(), "cpu"), list[Progress]()
    request = UpscaleRequest(tiny.picture(*size), by, prompt="a cat", steps=2)
    request = replace(request, memory=bound_for_windows(upscaler.plan(request)))
    count = next(stage.tiles for stage in upscaler.plan(request).stages if stage.name == "network calls")
    assert count > 1
    made = upscaler(request, seen.append)
    assert made.image.size == (by * size[0], by * size[1])
    assert len(made.notes) == 1 and made.notes[0].startswith(f"denoised in {count} overlapping windows of ")
    assert [one.done for one in seen if one.step is None] == list(range(1, 2 * count + 1))
    assert {one.total for one in seen} == {2 * count} and seen[-1].step is not None
    whole = upscaler(replace(request, tile=False, memory=None))
    assert whole.notes == () and np.abs(pixels(whole.image) - pixels(made.image)).max() > 0
    assert (pixels(upscaler(replace(request, memory="1TiB")).image) == pixels(whole.image)).all()


@pytest.mark.parametrize("folder", [tiny.sd1_folder, tiny_xl.base_folder])
def test_remaking_larger_in_windows(folder: Callable[[], Path]) -> None:
    refiner, stages = load_refiner(folder(), "cpu"), list[Progress]()
    made = refiner(RefineRequest(tiny.picture(30, 50), "a cat", steps=4, strength=0.5, by=2, tile=True), stages.append)
    assert made.image.size == (60, 100) and made.notes[-1].startswith("denoised in ")
    assert {one.stage for one in stages} == {"enlarge: predict", "denoise"}


def test_what_enlarging_before_remaking_has_to_say_is_said(tmp_path: Path) -> None:
    refiner, place = load_refiner(tiny.sd1_folder(), "cpu"), tmp_path / "ink.tif"
    image = tiny.picture(9, 8).convert("CMYK")
    image.save(place, exif={}, tiffinfo={33723: b"\x1c\x02\x78\0\x06a hill"})
    once = refiner(RefineRequest(place, steps=2, strength=0.5))
    larger = refiner(RefineRequest(place, steps=2, strength=0.5, by=2))
    assert set(once.notes) <= set(larger.notes) and any("CMYK" in note for note in larger.notes)
    for key in ("cmyk_profile", "iptc"):
        assert larger.image.info[key] == once.image.info[key]


def test_a_window_over_everything_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, request = load_refiner(tiny.sd1_folder(), "cpu"), RefineRequest(tiny.picture(50, 40), steps=4, strength=1)
    expected = refiner(request)
    monkeypatch.setattr("enlarger.tasks.image_to_image.choose_windows", lambda *_: Windows(64, 16, 2))
    assert (pixels(refiner(request).image) == pixels(expected.image)).all()


def test_hires_in_one_call() -> None:
    generator = load_generator(tiny.sd1_folder(), "cpu")
    request = GenerateRequest("a boat", width=24, height=16, steps=2, upscale=4, tile=True, upscale_steps=4)
    made = generator(request)
    assert made.image.size == (96, 64) and made.notes[-1].startswith("denoised in ")
    assert [call.who for call in generator.explain(request).network_calls] == ["base"] * 2 + ["remake"]
    x2 = load_generator(tiny.sd1_folder(), "cpu", upscaler=tiny.x2_folder())
    assert x2(replace(request, width=32, upscale=2)).image.size == (64, 32)


def test_a_run_stops_between_windows() -> None:
    upscaler = load_upscaler(tiny_x4.x4_folder(), "cpu")

    def stop(progress: Progress) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        upscaler(UpscaleRequest(tiny.picture(70, 30), 4, steps=1, tile=True), stop)


def test_refusals() -> None:
    with pytest.raises(InputError, match="tile is for the enlarged picture, but upscale is 1; give upscale, or leave"):
        GenerateRequest("a", tile=True)
    refiner = load_refiner(tiny.sd1_folder(), "cpu")
    with pytest.raises(Unsupported, match="by is 2; latents are refined in their own size, leave by, or give a"):
        refiner(RefineRequest(Latents(tiny.latents(1, 8, 8), "sd"), by=2))


class SmoothDensity(torch.nn.Module):
    """The optimal denoiser of Gaussian pictures with the spectrum 1 / (1 + f^2 / 16): a Wiener filter of cosines."""

    sigma = 1.0

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        rows, columns = (self.cosines(length) for length in x.shape[2:])
        frequency = [torch.arange(n) * 64 / n for n in x.shape[2:]]
        variance = 64 / (1 + (frequency[0][:, None] ** 2 + frequency[1] ** 2) / 16)
        return rows.T @ (rows @ x @ columns.T * (variance / (variance + self.sigma**2))) @ columns

    def cosines(self, length: int) -> torch.Tensor:
        k, n = torch.arange(length), torch.arange(length) + 0.5
        return torch.cos(torch.pi * k[:, None] * n / length) * torch.where(k == 0, 1.0, 2.0).div(length).sqrt()[:, None]


@pytest.mark.parametrize("solver", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_no_seam_in_a_smooth_density(solver: str) -> None:
    network = SmoothDensity()

    def plain(sigma: torch.Tensor) -> Scalings:
        network.sigma = float(sigma)
        return Scalings(skip=0.0, output=1.0, input=1.0, time=torch.zeros(1))

    denoiser, windows = Denoiser(network, torch.float32, plain, Conditioning()), Windows(32, 8, 8)
    sigmas = torch.tensor([*torch.logspace(1.5, -1.5, 12, dtype=torch.float64), 0.0])
    x = sigmas[0] * from_seeds([0])(torch.empty(1, 4, 104, 104))
    whole, made = (
        sample(SOLVERS[solver], each, x, sigmas, from_seeds([1]))
        for each in (denoiser, WindowedDenoiser(denoiser, windows))
    )
    lines = [edge for start in windows.starts(104) for edge in (start, start + 32)]
    assert abs(seam_ratio(made, lines, lines) - seam_ratio(whole, lines, lines)) < 0.05
    composite = torch.cat([whole[..., :32], whole[..., 40:]], -1)
    assert seam_ratio(composite, [], [32]) > 1.5
