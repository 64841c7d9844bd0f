"""Random calls of the pipelines, drawn from their signatures, made by ours and by diffusers'."""

import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

import enlarger.diffusers as face
from tests.support import tiny, tiny_depth, tiny_xl
from tests.support.tiny_x4 import x4_folder

FOLDERS: Mapping[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": tiny.sd1_folder,
    "StableDiffusionImg2ImgPipeline": tiny.sd1_folder,
    "StableDiffusionInpaintPipeline": tiny.inpaint_folder,
    "StableDiffusionDepth2ImgPipeline": tiny_depth.depth_folder,
    "StableDiffusionLatentUpscalePipeline": tiny.x2_folder,
    "StableDiffusionUpscalePipeline": x4_folder,
    "StableDiffusionXLPipeline": tiny_xl.base_folder,
    "StableDiffusionXLImg2ImgPipeline": tiny_xl.refiner_folder,
    "StableDiffusionXLInpaintPipeline": tiny_xl.inpaint_folder,
}
X2, X4 = "StableDiffusionLatentUpscalePipeline", "StableDiffusionUpscalePipeline"
PRESERVING = ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
SCHEDULERS = (
    None, "DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler",
    "UniPCMultistepScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
WRONG: Mapping[str, tuple[Any, ...]] = {
    "strength": (1.5, -0.1),
    "height": (30,),
    "noise_level": (400,),
    "prompt": (None, 3),
    "negative_prompt": (["a", "b", "c"],),
    "callback_on_step_end_tensor_inputs": (["nothing"],),
    "denoising_end": (1.5,),
}
NO_STEPS = ("number of pipeline steps is 0", "no steps are left")  # refused here; diffusers decodes what it began with
VALUES: Mapping[str, tuple[Any, ...]] = {
    "negative_prompt": (None, "a dog", ""),
    "prompt_2": (None, "red"),
    "negative_prompt_2": (None, "blue"),
    "num_inference_steps": (1, 2, 3, 5),
    "guidance_scale": (0.0, 1.0, 1.5, 7.5),
    "num_images_per_prompt": (1, 1, 2),
    "eta": (0.0, 0.0, 0.5),
    "strength": (0.3, 0.6, 1.0),
    "noise_level": (0, 20, 300),
    "clip_skip": (None, None, 1),
    "guidance_rescale": (0.0, 0.7),
    "output_type": ("np", "pt", "latent"),
    "return_dict": (True, False),
    "original_size": (None, (32, 48)),
    "target_size": (None, (48, 32)),
    "crops_coords_top_left": ((0, 0), (4, 8)),
    "aesthetic_score": (6.0, 4.0),
    "negative_aesthetic_score": (2.5, 5.0),
    "denoising_end": (None, None, 0.7),
    "denoising_start": (None, None, 0.4),
    "cross_attention_kwargs": (None,),
    "callback_on_step_end_tensor_inputs": (["latents"],),
}
KEPT: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {  # on purpose, as docs/diffusers.md says
    "several pictures, and several results": lambda call: call["pictures"] > 1 < call.get("num_images_per_prompt", 1),
    "one picture, several prompts": lambda call: call["x4"] and call["pictures"] < call["prompts"],
    "the x2 upscaler and steps of unit variance": lambda call: call["kind"] == X2 and call["scheduler"] in PRESERVING,
    "sizes of the negative prompt in a batch": lambda call: call["xl"] and call["prompts"] > 1,
}


@dataclass(frozen=True, eq=False)
class Call:
    """A class, its scheduler, and what it is called with; pictures and latents by how they are made."""

    kind: str
    scheduler: str | None
    options: Mapping[str, Any]
    seeds: tuple[int, ...]  # one generator, or one for each result

    def __str__(self) -> str:
        shown = {name: type(v).__name__ if hasattr(v, "shape") else v for name, v in self.options.items()}
        return f"{self.kind} {self.scheduler or 'as it is'} {shown} seeds {self.seeds}"


def random_call(draw: random.Random) -> Call:
    while True:
        kind = draw.choice(list(FOLDERS))
        names = inspect.signature(getattr(face, kind).__call__).parameters
        prompts, scheduler = draw.choice((1, 1, 2)), draw.choice(SCHEDULERS)
        options: dict[str, Any] = {"prompt": "a cat" if prompts == 1 else ["a cat", "a red house"]}
        options |= {name: draw.choice(VALUES[name]) for name in names if name in VALUES and draw.random() < 0.5}
        options.setdefault("num_inference_steps", 2)
        options.setdefault("output_type", "np")
        pictures = _add_pictures(draw, kind, options, prompts)
        if prompts > 1 and isinstance(options.get("negative_prompt"), str):
            options["negative_prompt"] = [options["negative_prompt"], "grey"]
        if prompts > 1:
            options.pop("prompt_2", None)
            options.pop("negative_prompt_2", None)
        if draw.random() < 0.12:
            name = draw.choice([name for name in WRONG if name in names])
            options[name] = draw.choice(WRONG[name])
        about = {
            **options,
            "pictures": pictures,
            "prompts": prompts,
            "xl": "XL" in kind,
            "x4": kind == X4,
            "kind": kind,
            "scheduler": scheduler,
        }
        if any(kept(about) for kept in KEPT.values()):
            continue
        count = prompts * options.get("num_images_per_prompt", 1)
        seeds = tuple(range(count)) if draw.random() < 0.3 else (7,)
        return Call(kind, scheduler, options, seeds)


def _add_pictures(draw: random.Random, kind: str, options: dict[str, Any], prompts: int) -> int:
    """Add what the class starts from, and say how many pictures that are."""
    if kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        options |= {"height": 64, "width": draw.choice((64, 96))}
        return 0
    small = kind == X4
    count = prompts if kind == X2 else draw.choice((1, prompts))
    pil = [tiny.picture(32 if small else 64, 32 if small else 64, seed) for seed in range(count)]
    array = np.stack([np.asarray(one, np.float32) / 255 for one in pil])
    forms = {"pil": pil if count > 1 else pil[0], "np": array, "pt": torch.from_numpy(array).permute(0, 3, 1, 2)}
    depth = kind == "StableDiffusionDepth2ImgPipeline"
    options["image"] = forms["pil" if depth else draw.choice(list(forms))]
    if depth:
        options["depth_map"] = torch.linspace(0, 1, 64 * 64).reshape(1, 64, 64).sin().repeat(count, 1, 1)
    if "Inpaint" in kind:
        mask = pil[0].convert("L").point(lambda value: 255 if value > 120 else 0)
        options |= {"mask_image": mask, "height": 64, "width": 64, "image": forms["pil"]}
        if draw.random() < 0.3 and count == 1 and options["output_type"] == "np":
            options |= {"padding_mask_crop": 8, "output_type": "pil"}
    return count


@cache
def pipelines(kind: str) -> tuple[Any, Any]:
    """Ours and diffusers', read once."""
    folder, more = FOLDERS[kind](), {"safety_checker": None} if kind in _CHECKED else {}
    pipes = tuple(getattr(room, kind).from_pretrained(folder, **more) for room in (face, diffusers))
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes[0], pipes[1]


_CHECKED = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")


def made(pipe: Any, room: Any, call: Call) -> Tensor | str:
    """The pictures, or what was raised."""
    before = pipe.scheduler
    options = {name: value.clone() if isinstance(value, Tensor) else value for name, value in call.options.items()}
    generators = [torch.Generator().manual_seed(seed) for seed in call.seeds]
    try:
        if call.scheduler is not None:
            pipe.scheduler = getattr(room, call.scheduler).from_config(before.config, **_prediction(call))
        found = pipe(generator=generators if len(generators) > 1 else generators[0], **options)[0]
    except Exception as error:  # noqa: BLE001 - whatever either raises is a result
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        pipe.scheduler = before
    listed = [np.asarray(one, np.float32) / 255 for one in found] if isinstance(found, list) else found
    return torch.as_tensor(np.asarray(listed)) if not isinstance(listed, Tensor) else listed


def _prediction(call: Call) -> dict[str, str]:
    return {"prediction_type": "sample"} if call.kind == X2 else {}


def compare(call: Call) -> tuple[str, str]:
    """ "equal", "both raise", "both differ" is never said: "different", "refused" or "taken", and more of it."""
    ours, theirs = pipelines(call.kind)
    expected, found = made(theirs, diffusers, call), made(ours, face, call)
    if isinstance(expected, str):
        return ("both raise", expected) if isinstance(found, str) else ("taken", expected)
    if isinstance(found, str):
        return ("no steps", "") if any(said in found for said in NO_STEPS) else ("refused", found)
    if found.shape != expected.shape:
        return "different", f"shapes {tuple(found.shape)} and {tuple(expected.shape)}"
    if not bool(expected.isfinite().all()):
        return "diffusers gives no numbers", ""
    worst = float((found.float() - expected.float()).abs().max()) / max(1.0, float(expected.float().abs().max()))
    levels = call.options.get("output_type") == "pil"  # one of 255 is a rounding
    return ("equal", "") if worst <= (1.01 / 255 if levels else 1e-4) else ("different", f"{worst:.1e}")
