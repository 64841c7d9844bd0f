"""Comparing an upscaler with interpolation on pictures whose large version is known."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.evaluate import metrics
from enlarger.evaluate.material import beside, check_degradations, keep, sample_of, sets_in
from enlarger.evaluate.sheet import contact_sheet
from enlarger.image.picture import read_picture, save_image
from enlarger.image.resize import resize
from enlarger.nn.perceptual import Judges, read_judges
from enlarger.requests import UpscaleRequest
from enlarger.tasks.results.result import Progress, ProgressCallback, no_progress
from enlarger.tasks.upscale.upscale import load_upscaler
from enlarger.tasks.upscale.upscaler import Upscaler

MOST_CROPS = 16  # on the contact sheet
CROP = 96  # pixels of the large picture on a side, on the contact sheet
Enlarge = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class EvaluationTable:
    """What `enlarger evaluate upscale` prints: a row for each set and each way to enlarge, with means over the set.

    `ms_ssim` is None where a picture is too small for it, `lpips` and `dists` without their weights; `largest` and
    `mean` are differences of the half-size copy to the input in 8-bit steps, the largest over the set; `fine_energy`
    and `fine_correlation` are of what lies above the input's Nyquist frequency; `seconds` is per picture, None for
    other programs' results.
    """

    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        lines = [
            "| set | method | PSNR dB | PSNR-Y dB | SSIM | MS-SSIM | GMSD | LPIPS | DISTS | "
            "fine energy / correlation | consistency max / mean | s per picture |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for r in self.rows:
            scales, lpips, dists, seconds = (
                "-" if r[name] is None else f"{r[name]:.{places}f}"
                for name, places in (("ms_ssim", 4), ("lpips", 4), ("dists", 4), ("seconds", 2))
            )
            lines.append(
                f"| {r['set']} ({r['pictures']}) | {r['method']} | {r['psnr']:.2f} | {r['psnr_y']:.2f} | "
                f"{r['ssim']:.4f} | {scales} | {r['gmsd']:.4f} | {lpips} | {dists} | "
                f"{r['fine_energy']:.2f} / {r['fine_correlation']:.2f} | "
                f"{r['largest']:.1f} / {r['mean']:.2f} | {seconds} |"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Evaluation:
    """What is to be measured."""

    folder: Path
    model: str | Path | None = None
    steps: Sequence[int] = ()  # of models that take them
    sheet: Path | None = None  # a PNG of crops side by side
    judges: Path | None = None  # weights of LPIPS and DISTS
    degraded: Sequence[str] = ()  # names in `degrade.DEGRADATIONS`: sets of damaged inputs, beside the plain ones
    beside: Path | None = None  # results of other programs: FOLDER/METHOD/SET/NAME.png
    keep: Path | None = None  # where to write inputs and results in that order
    seed: int = 0
    device: str = "auto"


def evaluate_upscale(wanted: Evaluation, watch: ProgressCallback = no_progress) -> EvaluationTable:
    """Halve the pictures of a folder (antialiased bicubic, 8 bits), enlarge them again, and measure.

    Pictures in folders inside it are sets of their own. Raises InputError when there is no picture.
    """
    check_degradations(wanted.degraded)
    judges = None if wanted.judges is None else read_judges(wanted.judges)
    sets = sets_in(wanted.folder)
    upscaler = load_upscaler(wanted.model, wanted.device)
    kinds: list[str | None] = [None, *wanted.degraded]
    total, done = len(kinds) * sum(len(paths) for paths in sets.values()), 0
    rows: list[dict[str, Any]] = []
    crops: list[tuple[str, list[tuple[str, Image.Image]]]] = []
    for (name, paths), kind in product(sets.items(), kinds):
        group = name if kind is None else f"{name} {kind}"
        methods, found = _methods(upscaler, wanted.steps, kind), dict[str, list[dict[str, float]]]()
        for i, path in enumerate(paths):
            sample = sample_of(path, kind, wanted.seed)
            made = {method: _timed(enlarge, sample.small) for method, enlarge in methods.items()}
            made |= {method: (image, math.nan) for method, image in beside(wanted.beside, group, sample).items()}
            for method, (image, seconds) in made.items():
                measured = _measure(image, sample.truth, sample.small, judges) | {"seconds": seconds}
                found.setdefault(method, []).append(measured)
            images = {method: image for method, (image, _) in made.items()}
            if wanted.keep is not None:
                keep(wanted.keep, group, sample, images)
            if i % max(1, len(paths) // 2) == 0 and len(crops) < MOST_CROPS:
                crops.append((f"{group}: {sample.name}", _crops({"truth": sample.truth} | images)))
            done += 1
            watch(Progress("evaluate", done, total))
        rows += [_row(group, method, measured) for method, measured in found.items()]
    if wanted.sheet is not None:
        save_image(contact_sheet(crops), wanted.sheet, overwrite=True)
    return EvaluationTable(tuple(rows))


def _methods(upscaler: Upscaler, steps: Sequence[int], degradation: str | None) -> Mapping[str, Enlarge]:
    """Interpolation, and the model: at several settings, or at several numbers of steps if it takes them."""

    def by_model(**options: Any) -> Enlarge:
        return lambda small: upscaler(UpscaleRequest(small, **options)).image

    def resample(kind: Image.Resampling) -> Enlarge:
        return lambda small: small.resize((2 * small.width, 2 * small.height), kind)

    methods = {"bicubic": resample(Image.Resampling.BICUBIC), "Lanczos": resample(Image.Resampling.LANCZOS)}
    if "detail" in upscaler.kind.unused_options:
        return methods | {f"{n} steps": by_model(steps=n) for n in steps or (10, 20)}
    if steps:
        raise InputError("steps are given, but the bundled model takes none; leave them")
    if degradation is not None:
        return methods | {"model": by_model(), "model, restore 0.5": by_model(restore=0.5)}
    return methods | {f"model, detail {detail:g}": by_model(detail=detail) for detail in (0.0, 0.5, 1.0)}


def _timed(enlarge: Enlarge, small: Image.Image) -> tuple[Image.Image, float]:
    started = time.perf_counter()
    return enlarge(small), time.perf_counter() - started


def _unit(image: Image.Image) -> Tensor:
    return read_picture(image).colour / 2 + 0.5


def _measure(image: Image.Image, truth: Image.Image, small: Image.Image, judges: Judges | None) -> dict[str, float]:
    found, real = _unit(image), _unit(truth)
    kept = metrics.consistency(found, _unit(small))
    wide, band = min(truth.size) >= metrics.MS_SSIM_MIN_SIZE, metrics.fine_band(found, real)
    seen = {"lpips": math.nan, "dists": math.nan}
    if judges is not None:
        pair = ((v[None] * 2 - 1).float() for v in (found, real))
        seen = _seen(judges, *pair)
    return {
        "psnr": float(metrics.psnr(found, real)),
        "psnr_y": float(metrics.psnr_y(found, real)),
        "ssim": float(metrics.ssim(found, real)),
        "ms_ssim": float(metrics.ms_ssim(found, real)) if wide else float("nan"),
        "gmsd": float(metrics.gmsd(found, real)),
        **seen,
        "fine_energy": band.energy,
        "fine_correlation": band.correlation,
        "largest": kept.largest,
        "mean": kept.mean,
    }


def _seen(judges: Judges, found: Tensor, truth: Tensor) -> dict[str, float]:
    with torch.inference_mode():
        return {"lpips": float(judges.alex(found, truth)), "dists": float(judges.dists(found, truth))}


def _row(name: str, method: str, measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means: dict[str, Any] = {key: round(fmean(one[key] for one in measured), 4) for key in measured[0]}
    means["largest"] = round(max(one["largest"] for one in measured), 2)
    for key in ("ms_ssim", "lpips", "dists", "seconds"):
        means[key] = None if math.isnan(means[key]) else means[key]
    return {"set": name, "method": method, "pictures": len(measured), **means}


def _crops(images: Mapping[str, Image.Image]) -> list[tuple[str, Image.Image]]:
    """The busiest part of the first picture, cut from all of them."""
    first = read_picture(next(iter(images.values()))).colour.mean(0)
    size = min(CROP, *first.shape)
    energy = resize((first[1:, 1:] - first[:-1, :-1]).abs()[None], (first.shape[0] // 8, first.shape[1] // 8))[0]
    windows = torch.nn.functional.avg_pool2d(energy[None], max(1, size // 8), 1)[0]
    row, column = divmod(int(windows.argmax()), windows.shape[1])
    box = (min(8 * column, first.shape[1] - size), min(8 * row, first.shape[0] - size))
    return [(name, image.crop((*box, box[0] + size, box[1] + size))) for name, image in images.items()]
