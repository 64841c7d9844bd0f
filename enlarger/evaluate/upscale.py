"""Comparing an upscaler with interpolation on pictures whose large version is known."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.evaluate import metrics
from enlarger.evaluate.sheet import contact_sheet
from enlarger.image.picture import SUFFIXES, Picture, list_pictures, read_picture, save_image, to_pil
from enlarger.image.resize import resize
from enlarger.requests import DEFAULTS, UpscaleRequest
from enlarger.tasks.result import Progress, ProgressCallback, no_progress
from enlarger.tasks.upscale.upscale import load_upscaler
from enlarger.tasks.upscale.upscaler import Upscaler

CROP = 96  # pixels of the large picture on a side, on the contact sheet
UpscaleFn = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class EvaluationTable:
    """What `enlarger evaluate upscale` prints: a row for each set and each way to enlarge, with means over the set.

    `ms_ssim` is None where a picture is too small for it; `largest` and `mean` are differences of the half-size copy to
    the input in 8-bit steps, the largest over the set; `seconds` is per picture.
    """

    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        lines = [
            "| set | method | PSNR dB | PSNR-Y dB | SSIM | MS-SSIM | GMSD | consistency max / mean | s per picture |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for r in self.rows:
            scales = "-" if r["ms_ssim"] is None else f"{r['ms_ssim']:.4f}"
            lines.append(
                f"| {r['set']} ({r['pictures']}) | {r['method']} | {r['psnr']:.2f} | {r['psnr_y']:.2f} | "
                f"{r['ssim']:.4f} | {scales} | {r['gmsd']:.4f} | "
                f"{r['largest']:.1f} / {r['mean']:.2f} | {r['seconds']:.2f} |"
            )
        return "\n".join(lines)


def evaluate_upscale(
    folder: Path, model: str | Path | None = None, steps: Sequence[int] = (), sheet: Path | None = None,
    device: str = "auto", watch: ProgressCallback = no_progress,
) -> EvaluationTable:  # fmt: skip
    """Halve the pictures of a folder (antialiased bicubic, 8 bits), enlarge them again, and measure.

    Pictures in folders inside it are sets of their own. `sheet` is where to write a PNG of crops side by side.
    Raises InputError when there is no picture.
    """
    sets = _sets(folder)
    methods = _methods(load_upscaler(model, device), steps)
    total, done = sum(len(paths) for paths in sets.values()), 0
    rows: list[dict[str, Any]] = []
    crops: list[tuple[str, list[tuple[str, Image.Image]]]] = []
    for name, paths in sets.items():
        measurements: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
        for i, path in enumerate(paths):
            truth, small = _read_pair(path)
            outputs = {method: _timed(upscale_fn, small) for method, upscale_fn in methods.items()}
            for method, (image, seconds) in outputs.items():
                measurements[method].append(_measure(image, truth, small) | {"seconds": seconds})
            if i % max(1, len(paths) // 2) == 0 and len(crops) < 8:
                crops.append((path.stem, _crops({"truth": truth} | {m: image for m, (image, _) in outputs.items()})))
            done += 1
            watch(Progress("evaluate", done, total))
        rows += [_row(name, method, measured) for method, measured in measurements.items()]
    if sheet is not None:
        save_image(contact_sheet(crops), sheet, overwrite=True)
    return EvaluationTable(tuple(rows))


def _sets(folder: Path) -> dict[str, list[Path]]:
    paths = list_pictures(folder)
    if not paths:
        raise InputError(f"{folder}: no pictures found; give a folder of photos ({', '.join(SUFFIXES)})")
    names = sorted({p.parent.name for p in paths})
    return {name: [p for p in paths if p.parent.name == name] for name in names}


def _methods(upscaler: Upscaler, steps: Sequence[int]) -> Mapping[str, UpscaleFn]:
    """Interpolation, and the model as it comes and at several numbers of steps."""

    def upscale_with_model(**options: Any) -> UpscaleFn:
        return lambda small: upscaler(UpscaleRequest(small, **options)).image

    def resample(resampling: Image.Resampling) -> UpscaleFn:
        return lambda small: small.resize((2 * small.width, 2 * small.height), resampling)

    methods = {"bicubic": resample(Image.Resampling.BICUBIC), "Lanczos": resample(Image.Resampling.LANCZOS)}
    if "detail" not in upscaler.kind.unused_options:
        default = DEFAULTS["upscale/bundled"]["detail"]
        methods |= {"model, the mean": upscale_with_model(detail=0.0)} | (
            {} if default == 0 else {"model, default": upscale_with_model()}
        )
        return methods | {
            f"model, detail 1, {n} steps": upscale_with_model(detail=1.0, steps=n) for n in steps or (2, 4, 8)
        }
    return methods | {f"{n} steps": upscale_with_model(steps=n) for n in steps or (10, 20)}


def _read_pair(path: Path) -> tuple[Image.Image, Image.Image]:
    image = to_pil(Picture(read_picture(path).colour))
    truth = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2))
    return truth, truth.resize((truth.width // 2, truth.height // 2), Image.Resampling.BICUBIC)


def _timed(upscale_fn: UpscaleFn, small: Image.Image) -> tuple[Image.Image, float]:
    started = time.perf_counter()
    return upscale_fn(small), time.perf_counter() - started


def _read_unit_range(image: Image.Image) -> Tensor:
    return read_picture(image).colour / 2 + 0.5


def _measure(image: Image.Image, truth: Image.Image, small: Image.Image) -> dict[str, float]:
    output, reference = _read_unit_range(image), _read_unit_range(truth)
    consistency = metrics.consistency(output, _read_unit_range(small))
    fits_ms_ssim = min(truth.size) >= metrics.MS_SSIM_MIN_SIZE
    return {
        "psnr": float(metrics.psnr(output, reference)),
        "psnr_y": float(metrics.psnr_y(output, reference)),
        "ssim": float(metrics.ssim(output, reference)),
        "ms_ssim": float(metrics.ms_ssim(output, reference)) if fits_ms_ssim else float("nan"),
        "gmsd": float(metrics.gmsd(output, reference)),
        "largest": consistency.largest,
        "mean": consistency.mean,
    }


def _row(name: str, method: str, measurements: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means: dict[str, Any] = {key: round(fmean(one[key] for one in measurements), 4) for key in measurements[0]}
    means["largest"] = round(max(one["largest"] for one in measurements), 2)
    means["ms_ssim"] = None if math.isnan(means["ms_ssim"]) else means["ms_ssim"]
    return {"set": name, "method": method, "pictures": len(measurements), **means}


def _crops(images: Mapping[str, Image.Image]) -> list[tuple[str, Image.Image]]:
    """The busiest part of the first picture, cut from all of them."""
    first = read_picture(next(iter(images.values()))).colour.mean(0)
    size = min(CROP, *first.shape)
    energy = resize((first[1:, 1:] - first[:-1, :-1]).abs()[None], (first.shape[0] // 8, first.shape[1] // 8))[0]
    windows = torch.nn.functional.avg_pool2d(energy[None], max(1, size // 8), 1)[0]
    row, column = divmod(int(windows.argmax()), windows.shape[1])
    box = (min(8 * column, first.shape[1] - size), min(8 * row, first.shape[0] - size))
    return [(name, image.crop((*box, box[0] + size, box[1] + size))) for name, image in images.items()]
