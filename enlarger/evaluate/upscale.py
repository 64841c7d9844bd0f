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
from enlarger.images import SUFFIXES, Picture, pictures_in, read_picture, save_image, to_pil
from enlarger.requests import DEFAULTS, UpscaleRequest
from enlarger.resize import resize
from enlarger.tasks.enlarge import Upscaler, load_upscaler
from enlarger.tasks.parts import Progress, Watch, quiet
from enlarger.tasks.upscale_compact import CompactUpscale

CROP = 96  # pixels of the large picture on a side, on the contact sheet
Enlarge = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Table:
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
    device: str = "auto", watch: Watch = quiet,
) -> Table:  # fmt: skip
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
        found: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
        for i, path in enumerate(paths):
            truth, small = _pair(path)
            made = {method: _timed(enlarge, small) for method, enlarge in methods.items()}
            for method, (image, seconds) in made.items():
                found[method].append(_measure(image, truth, small) | {"seconds": seconds})
            if i % max(1, len(paths) // 2) == 0 and len(crops) < 8:
                crops.append((path.stem, _crops({"truth": truth} | {m: image for m, (image, _) in made.items()})))
            done += 1
            watch(Progress("evaluate", done, total))
        rows += [_row(name, method, measured) for method, measured in found.items()]
    if sheet is not None:
        save_image(contact_sheet(crops), sheet, overwrite=True)
    return Table(tuple(rows))


def _sets(folder: Path) -> dict[str, list[Path]]:
    paths = pictures_in(folder)
    if not paths:
        raise InputError(f"{folder}: no pictures found; give a folder of photos ({', '.join(SUFFIXES)})")
    names = sorted({p.parent.name for p in paths})
    return {name: [p for p in paths if p.parent.name == name] for name in names}


def _methods(upscaler: Upscaler, steps: Sequence[int]) -> Mapping[str, Enlarge]:
    """Interpolation, and the model as it comes and at several numbers of steps."""

    def by_model(**options: Any) -> Enlarge:
        return lambda small: upscaler(UpscaleRequest(small, **options)).image

    def resample(kind: Image.Resampling) -> Enlarge:
        return lambda small: small.resize((2 * small.width, 2 * small.height), kind)

    methods = {"bicubic": resample(Image.Resampling.BICUBIC), "Lanczos": resample(Image.Resampling.LANCZOS)}
    if isinstance(upscaler.task, CompactUpscale):
        default = DEFAULTS["upscale/bundled"]["detail"]
        methods |= {"model, the mean": by_model(detail=0.0)} | ({} if default == 0 else {"model, default": by_model()})
        return methods | {f"model, detail 1, {n} steps": by_model(detail=1.0, steps=n) for n in steps or (2, 4, 8)}
    return methods | {f"{n} steps": by_model(steps=n) for n in steps or (10, 20)}


def _pair(path: Path) -> tuple[Image.Image, Image.Image]:
    image = to_pil(Picture(read_picture(path).colour))
    truth = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2))
    return truth, truth.resize((truth.width // 2, truth.height // 2), Image.Resampling.BICUBIC)


def _timed(enlarge: Enlarge, small: Image.Image) -> tuple[Image.Image, float]:
    started = time.perf_counter()
    return enlarge(small), time.perf_counter() - started


def _unit(image: Image.Image) -> Tensor:
    return read_picture(image).colour / 2 + 0.5


def _measure(image: Image.Image, truth: Image.Image, small: Image.Image) -> dict[str, float]:
    found, real = _unit(image), _unit(truth)
    kept = metrics.consistency(found, _unit(small))
    wide = min(truth.size) >= metrics.MS_SSIM_LEAST
    return {
        "psnr": float(metrics.psnr(found, real)),
        "psnr_y": float(metrics.psnr_y(found, real)),
        "ssim": float(metrics.ssim(found, real)),
        "ms_ssim": float(metrics.ms_ssim(found, real)) if wide else float("nan"),
        "gmsd": float(metrics.gmsd(found, real)),
        "largest": kept.largest,
        "mean": kept.mean,
    }


def _row(name: str, method: str, measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means: dict[str, Any] = {key: round(fmean(one[key] for one in measured), 4) for key in measured[0]}
    means["largest"] = round(max(one["largest"] for one in measured), 2)
    means["ms_ssim"] = None if math.isnan(means["ms_ssim"]) else means["ms_ssim"]
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
