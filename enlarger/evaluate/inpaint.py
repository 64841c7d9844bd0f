"""Inpainting measured: parts of known pictures are hidden, repainted, and compared with what was there."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.evaluate.feature_networks import read_inception
from enlarger.evaluate.generate import CARD_SOLVER, CARD_STEPS, FeatureFiles, distances, guidance_folder
from enlarger.evaluate.haarpsi import haarpsi
from enlarger.evaluate.inputs import as_words, files_digest, model_digest, stated_precision
from enlarger.evaluate.metrics import psnr, ssim
from enlarger.evaluate.results import EvaluationResults, Row, mean_rows, prepare_folder
from enlarger.image.mask import read_mask
from enlarger.image.picture import Picture, list_pictures, read_picture, save_image, to_pil
from enlarger.image.random_mask import lama_mask
from enlarger.requests import InpaintRequest
from enlarger.runtime.choices import resolve_device
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import Json
from enlarger.tasks.inpaint import load_inpainter
from enlarger.tasks.loading.load import Location
from enlarger.tasks.results.result import Progress, ProgressCallback, no_progress

FIGURES = {"psnr": psnr, "ssim": ssim, "haarpsi": haarpsi}
DEFAULT_GUIDANCE = (7.5,)


@dataclass(frozen=True)
class InpaintEvaluation:
    """What is repainted and measured. Masks without a folder are LaMa's, drawn by `seed` and the picture's name."""

    pictures: Path
    model: Location
    out: Path
    masks: Path | None = None  # a folder with masks of the pictures' names, white is repainted
    files: FeatureFiles = field(default_factory=FeatureFiles)
    guidance: Sequence[float] = DEFAULT_GUIDANCE
    steps: int = CARD_STEPS
    solver: str = CARD_SOLVER
    preserve: Literal["exact", "none"] = "exact"  # none: as the autoencoder gives what the mask does not cover
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class _Hidden:
    """A picture with what is hidden of it."""

    truth: Image.Image
    mask: Tensor  # (H, W), 1 is repainted


@dataclass(frozen=True)
class _Case:
    """Where a picture and its mask are, its prompt and its seed; they are read where they are needed."""

    name: str  # of the result
    picture: Path
    mask: Path | None  # None: drawn by `mask_seed`
    mask_seed: int
    prompt: str
    seed: int

    def hide(self) -> _Hidden:
        """Raises InputError for what is no picture, and for a mask that does not fit it."""
        truth = to_pil(Picture(read_picture(self.picture).colour))
        size = (truth.height, truth.width)
        if self.mask is None:
            weights = lama_mask(size, torch.Generator().manual_seed(self.mask_seed))
        else:
            weights = (read_mask(self.mask, size, "white").weights > 0.5).float()
        return _Hidden(truth, weights[0])


def evaluate_inpaint(wanted: InpaintEvaluation, watch: ProgressCallback = no_progress) -> EvaluationResults:
    """Repaint, measure, and write figures to `out`; pictures that lie there already are not made again.

    PSNR, SSIM and HaarPSI count the pixels under the mask (`masked`) and the others (`unmasked`); FID, where
    Inception's weights are given, compares whole results with the pictures. A picture's prompt is the `.txt` file
    beside it. Raises InputError for what cannot be measured, before anything is repainted.
    """
    paths = list_pictures(wanted.pictures)
    if not paths:
        raise InputError(f"{wanted.pictures}: no pictures found; give a folder of pictures")
    if not wanted.guidance:
        raise InputError("no guidance scales are given, expected one or more, such as 7.5")
    if wanted.files.inception is not None and len(paths) < 2:
        raise InputError(f"{wanted.pictures}: holds one picture, expected 2 or more for FID; add pictures")
    cases = _cases(wanted, paths)
    names = Counter(case.name for case in cases)
    if (name := max(names, key=lambda each: names[each])) and names[name] > 1:
        raise InputError(f"{wanted.pictures}: {names[name]} pictures would be {name}.png; rename all but one")
    first = cases[0].hide()
    for scale in wanted.guidance:
        _request(wanted, cases[0], first, scale)  # raises for what no model takes
    for case in cases:
        case.hide()  # raises for what is no picture, or no mask of it
    inception = None
    if wanted.files.inception is not None:
        runtime = Runtime.here(resolve_device(wanted.device))
        inception = read_inception(wanted.files.inception, runtime, allow_pickle=wanted.files.allow_pickle)
    settings = _settings(wanted, cases)
    prepare_folder(wanted.out, settings)
    made = {
        scale: [guidance_folder(wanted.out, scale) / f"{case.name}.png" for case in cases] for scale in wanted.guidance
    }
    _repaint(wanted, cases, made, watch)
    rows = list[Row]()
    real = None if inception is None else inception(case.hide().truth for case in cases)
    for scale, results in made.items():
        figures = mean_rows([_compare(case.hide(), path) for case, path in zip(cases, results, strict=True)])
        fid = None if inception is None or real is None else distances(inception(results), real)[0]
        rows.append({"guidance": scale, "pictures": len(results), **dict(_known(figures)), "fid": fid})
    found = EvaluationResults(settings, tuple(rows))
    found.save(wanted.out)
    return found


def _settings(wanted: InpaintEvaluation, cases: Sequence[_Case]) -> Json:
    """What the results follow from, but for guidance, of which more may be added."""
    names = ("model", "pictures", "masks", "steps", "solver", "preserve", "seed")
    stated = {name: getattr(wanted, name) for name in names}
    masks = [(case.name, case.mask) for case in cases if case.mask is not None]
    return {
        "task": "inpaint",
        **{name: value if isinstance(value, int | None) else str(value) for name, value in stated.items()},
        "model_digest": model_digest(wanted.model),
        "precision": stated_precision(wanted.precision, wanted.device),
        "pictures_digest": files_digest((case.name, case.picture) for case in cases),
        "masks_digest": files_digest(masks) if masks else None,
        "prompts": [case.prompt for case in cases],
    }


def _cases(wanted: InpaintEvaluation, paths: Sequence[Path]) -> list[_Case]:
    """The pictures with the masks of their names, or those that are drawn. Raises InputError where one is missing."""
    masks = {} if wanted.masks is None else {_stem(wanted.masks, file): file for file in list_pictures(wanted.masks)}
    cases = list[_Case]()
    for i, path in enumerate(paths):
        name = _stem(wanted.pictures, path)
        if wanted.masks is not None and name not in masks:
            raise InputError(f"{wanted.masks}: no mask for {name}; name each mask as its picture")
        mask_seed = crc32(name.encode(), wanted.seed & 0xFFFFFFFF)
        prompt = _prompt_of(path.with_suffix(".txt"))
        cases.append(_Case(name.replace("/", "-"), path, masks.get(name), mask_seed, prompt, wanted.seed + i))
    return cases


def _stem(folder: Path, file: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _prompt_of(file: Path) -> str:
    """The text in one line; empty where there is none. Raises InputError for what is no text."""
    try:
        return " ".join(file.read_text("utf-8-sig").split()) if file.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text in UTF-8 ({error}); write it anew") from error


def _repaint(
    wanted: InpaintEvaluation, cases: Sequence[_Case], made: Mapping[float, list[Path]], watch: ProgressCallback
) -> None:
    """Make the results that are missing; where none is, the model is not read."""
    missing = [
        (scale, case, path)
        for scale, paths in made.items()
        for case, path in zip(cases, paths, strict=True)
        if not path.exists()
    ]
    if not missing:
        return
    inpainter = load_inpainter(wanted.model, wanted.device, wanted.precision)
    for done, (scale, case, path) in enumerate(missing):
        watch(Progress("inpaint", done, len(missing)))
        path.parent.mkdir(exist_ok=True)
        save_image(inpainter(_request(wanted, case, case.hide(), scale)).image, path, overwrite=True)


def _request(wanted: InpaintEvaluation, case: _Case, hidden: _Hidden, scale: float) -> InpaintRequest:
    return InpaintRequest(
        hidden.truth, hidden.mask, as_words(case.prompt), guidance=scale, steps=wanted.steps, solver=wanted.solver,
        preserve=wanted.preserve, feather=0, seed=case.seed,
    )  # fmt: skip


def _compare(one: _Hidden, result: Path) -> dict[str, float]:
    """The figures under the mask and beside it; NaN where there is nothing of either."""
    found, truth = (read_picture(image).colour / 2 + 0.5 for image in (result, one.truth))
    figures = {"coverage": float(one.mask.mean())}
    for part, weights in (("masked", one.mask), ("unmasked", 1 - one.mask)):
        for name, figure in FIGURES.items():
            figures[f"{name}_{part}"] = float(figure(found, truth, weights)) if bool(weights.any()) else math.nan
    return figures


def _known(figures: Mapping[str, float]) -> Iterator[tuple[str, float | None]]:
    for name, value in figures.items():
        yield name, None if math.isnan(value) else value
