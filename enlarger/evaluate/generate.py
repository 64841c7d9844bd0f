"""The sweep of Stable Diffusion's model cards: pictures of many prompts at several guidance scales, measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.evaluate.distribution import KernelDistance, frechet_distance, kernel_distance
from enlarger.evaluate.feature_networks import ClipScorer, InceptionFeatures, read_clip, read_inception
from enlarger.evaluate.inputs import as_words, model_digest, stated_precision
from enlarger.evaluate.plot import Point, draw_curves
from enlarger.evaluate.results import EvaluationResults, Row, prepare_folder, read_results
from enlarger.image.decode import upright_size
from enlarger.image.picture import Picture, list_pictures, read_picture, save_image, to_pil
from enlarger.image.resize import covering_size, resize
from enlarger.requests import GenerateRequest
from enlarger.runtime.choices import resolve_device
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import Json
from enlarger.tasks.loading.load import Location
from enlarger.tasks.results.result import Progress, ProgressCallback, no_progress
from enlarger.tasks.text_to_image import load_generator

CARD_GUIDANCE = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
CARD_STEPS, CARD_SOLVER = 50, "ddim"
PLOT_FILE = "plot.png"


@dataclass(frozen=True)
class FeatureFiles:
    """Where the weights of the networks are that look at pictures; nothing is downloaded."""

    inception: Path | None = None  # pytorch-fid's file, for FID and KID
    clip: Path | None = None  # a folder in transformers' layout, for the CLIP score
    allow_pickle: bool = False


@dataclass(frozen=True)
class GenerateEvaluation:
    """What is to be generated and measured. The defaults are the cards'; a prompt's seed counts on from `seed`."""

    prompts: Path  # a text file, one a line
    model: Location
    out: Path
    files: FeatureFiles
    reference: Path | None = None  # a folder of real pictures, for FID and KID
    guidance: Sequence[float] = CARD_GUIDANCE
    steps: int = CARD_STEPS
    solver: str = CARD_SOLVER
    size: tuple[int, int] | None = None  # height, width; None: the model's own
    limit: int | None = None  # so many prompts, drawn by `seed`
    seed: int = 0
    beside: Sequence[Path] = ()  # earlier evaluations, drawn into the plot too
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class _Judges:
    """What measures, where its weights are given; the real pictures' features once they are known."""

    inception: InceptionFeatures | None
    clip: ClipScorer | None
    reference: tuple[Path, ...]


def evaluate_generate(wanted: GenerateEvaluation, watch: ProgressCallback = no_progress) -> EvaluationResults:
    """Generate, measure, and write figures and the plot to `out`; pictures that lie there already are not made again.

    Raises InputError for what cannot be measured, before anything is generated.
    """
    prompts = read_prompts(wanted.prompts, wanted.limit, wanted.seed)
    if not wanted.guidance:
        raise InputError("no guidance scales are given, expected one or more, such as 1.5 and 3")
    for scale in wanted.guidance:
        _request(wanted, prompts[0], scale, wanted.seed)  # raises for what no model takes
    if wanted.files.inception is not None and len(prompts) < 2:
        raise InputError(f"{wanted.prompts}: holds one prompt, expected 2 or more for FID; add prompts")
    judges = _read_judges(wanted)
    name, *names = curve_names([wanted.out, *wanted.beside])
    others = {each: read_results(path) for each, path in zip(names, wanted.beside, strict=True)}
    settings = _settings(wanted, prompts)
    prepare_folder(wanted.out, settings)
    made = {scale: _paths(wanted.out, scale, len(prompts)) for scale in wanted.guidance}
    _generate(wanted, prompts, made, watch)
    results = EvaluationResults(settings, tuple(_measure(judges, prompts, made, watch)))
    results.save(wanted.out)
    plot = plot_results({name: results} | others)
    if plot is not None:
        save_image(plot, wanted.out / PLOT_FILE, overwrite=True)
    return results


def read_prompts(path: Path, limit: int | None = None, seed: int = 0) -> list[str]:
    """The lines of a text file that are not empty; `limit` of them in any order, by `seed`. Raises InputError."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as text in UTF-8 ({error}); give a file with one prompt a line"
        ) from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise InputError(f"{path}: holds no prompts; write one into each line")
    if limit is None or limit >= len(prompts):
        return prompts
    return [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))[:limit]]


def _read_judges(wanted: GenerateEvaluation) -> _Judges:
    files, runtime = wanted.files, Runtime.here(resolve_device(wanted.device))
    if files.inception is None and files.clip is None:
        raise InputError(
            "nothing would be measured: give Inception's weights and real pictures for FID, or CLIP's folder"
        )
    if (files.inception is None) != (wanted.reference is None):
        missing = "the weights of Inception" if files.inception is None else "a folder of real pictures"
        raise InputError(f"FID needs both Inception's weights and real pictures; {missing} is missing: give it too")
    reference = () if wanted.reference is None else tuple(list_pictures(wanted.reference))
    if wanted.reference is not None and len(reference) < 2:
        raise InputError(f"{wanted.reference}: found {len(reference)} pictures, expected 2 or more; add real pictures")
    for path in reference:
        upright_size(path)  # raises for what is no picture
    inception = None
    if files.inception is not None:
        inception = read_inception(files.inception, runtime, allow_pickle=files.allow_pickle)
    return _Judges(inception, None if files.clip is None else read_clip(files.clip, runtime), reference)


def _settings(wanted: GenerateEvaluation, prompts: Sequence[str]) -> Json:
    """What the pictures follow from. Guidance is not among it: further scales may be added."""
    return {
        "task": "generate",
        "model": str(wanted.model),
        "model_digest": model_digest(wanted.model),
        "precision": stated_precision(wanted.precision, wanted.device),
        "steps": wanted.steps,
        "solver": wanted.solver,
        "size": None if wanted.size is None else f"{wanted.size[1]}x{wanted.size[0]}",
        "seed": wanted.seed,
        "prompts": list(prompts),
    }


def _paths(out: Path, scale: float, count: int) -> list[Path]:
    return [guidance_folder(out, scale) / f"{i:05d}.png" for i in range(count)]


def guidance_folder(out: Path, scale: float) -> Path:
    """Where the pictures of a scale lie; different scales have different names."""
    return out / f"guidance-{scale:.12g}"


def _generate(
    wanted: GenerateEvaluation, prompts: Sequence[str], made: Mapping[float, list[Path]], watch: ProgressCallback
) -> None:
    """Make the pictures that are missing; where none is, the model is not read."""
    missing = [(scale, i, path) for scale, paths in made.items() for i, path in enumerate(paths) if not path.exists()]
    if not missing:
        return
    generator = load_generator(wanted.model, wanted.device, wanted.precision)
    for done, (scale, i, path) in enumerate(missing):
        watch(Progress("generate", done, len(missing)))
        path.parent.mkdir(exist_ok=True)
        request = _request(wanted, prompts[i], scale, wanted.seed + i)
        save_image(generator(request).image, path, overwrite=True)


def _request(wanted: GenerateEvaluation, prompt: str, scale: float, seed: int) -> GenerateRequest:
    height, width = (None, None) if wanted.size is None else wanted.size
    return GenerateRequest(
        as_words(prompt),
        width,
        height,
        guidance=scale,
        steps=wanted.steps,
        solver=wanted.solver,
        seed=seed,
        watermark=False,
    )


def _measure(
    judges: _Judges, prompts: Sequence[str], made: Mapping[float, list[Path]], watch: ProgressCallback
) -> Iterator[Row]:
    """A row for each guidance scale."""
    real = _real_features(judges, made, watch)
    for scale, paths in made.items():
        fid, kid, score = None, None, None
        if judges.inception is not None and real is not None:
            found = judges.inception(paths, _seen(watch, f"features at guidance {scale:g}", len(paths)))
            fid, kid = distances(found, real)
        if judges.clip is not None:
            scores = judges.clip(paths, prompts, _seen(watch, f"CLIP score at guidance {scale:g}", len(paths)))
            score = float(scores.double().mean())
        spread = {"kid": None, "kid_std": None} if kid is None else {"kid": kid.mean, "kid_std": kid.std}
        yield {"guidance": scale, "pictures": len(paths), "fid": fid, **spread, "clip_score": score}


def _real_features(judges: _Judges, made: Mapping[float, list[Path]], watch: ProgressCallback) -> Tensor | None:
    """Those of the real pictures' middles, at the size of the generated ones."""
    if judges.inception is None:
        return None
    first = read_picture(next(iter(made.values()))[0])
    fitted = (fit_to(path, (first.height, first.width)) for path in judges.reference)
    return judges.inception(fitted, _seen(watch, "features of the real pictures", len(judges.reference)))


def distances(found: Tensor, real: Tensor) -> tuple[float, KernelDistance]:
    """FID and KID."""
    return frechet_distance(found, real), kernel_distance(found, real)


def _seen(watch: ProgressCallback, stage: str, total: int) -> Callable[[int], None]:
    return lambda count: watch(Progress(stage, count, total))


def fit_to(path: Path, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture at a size (h, w), as the generated ones have it."""
    picture = read_picture(path)
    covering = covering_size((picture.height, picture.width), size)
    colour = resize(picture.colour, covering).clamp(-1, 1)
    top, left = ((large - small) // 2 for large, small in zip(covering, size, strict=True))
    return to_pil(Picture(colour[:, top : top + size[0], left : left + size[1]]))


def curve_names(places: Sequence[Path]) -> list[str]:
    """Each evaluation's folder, by as many of its last parts as tell all of them apart.

    Raises InputError where one is given twice.
    """
    folders = [(place.parent if place.is_file() else place).resolve() for place in places]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise InputError(f"{places[i]}: is to be drawn twice, or is the result itself; give each evaluation once")
    depths = range(1, max(len(folder.parts) for folder in folders) + 1)
    named = (["/".join(folder.parts[-depth:]) for folder in folders] for depth in depths)
    return next(names for names in named if len(set(names)) == len(names))


def plot_results(results: Mapping[str, EvaluationResults]) -> Image.Image | None:
    """The card's plot of one or several evaluations; None where none has both figures."""
    curves = {name: list(_points(each.rows)) for name, each in results.items()}
    curves = {name: curve for name, curve in curves.items() if curve}
    return draw_curves(curves, "CLIP score", "FID") if curves else None


def _points(rows: Sequence[Row]) -> Iterator[Point]:
    for row in rows:
        score, fid, scale = (row.get(name) for name in ("clip_score", "fid", "guidance"))
        if isinstance(score, float) and isinstance(fid, float):
            yield score, fid, f"{scale:g}" if isinstance(scale, float | int) else str(scale)
