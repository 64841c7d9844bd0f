"""Loops as diffusers' documentation writes them, over a pipeline's parts: ours or diffusers'."""

import inspect
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor

import enlarger.diffusers as face
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES
from tests.support import tiny, tiny_xl
from tests.support.close import max_difference

PROMPT, SCALE = "a cat", 3.0
X2_PREDICTION = {"EulerDiscreteScheduler": "original_sample"}  # "sample" in the others


def extras(pipe: Any, generator: torch.Generator) -> dict[str, Any]:
    """What the scheduler's step takes of a generator and of eta, as the pipelines call it."""
    taken = inspect.signature(pipe.scheduler.step).parameters
    return {name: value for name, value in (("generator", generator), ("eta", 0.0)) if name in taken}


def guided(output: Tensor) -> Tensor:
    without, told = output.chunk(2)
    return without + SCALE * (told - without)


def decoded(pipe: Any, latents: Tensor) -> Tensor:
    """The picture in 0..1, (B, 3, H, W)."""
    return (pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def text_to_image(pipe: Any, steps: int, generator: torch.Generator) -> Tensor:
    prompt, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    pipe.scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 8, 8, generator=generator) * pipe.scheduler.init_noise_sigma
    told = torch.cat([negative, prompt])
    for t in pipe.scheduler.timesteps:
        seen = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), t)
        output = guided(pipe.unet(seen, t, encoder_hidden_states=told).sample)
        latents = pipe.scheduler.step(output, t, latents, **extras(pipe, generator)).prev_sample
    return decoded(pipe, latents)


def text_to_image_xl(pipe: Any, steps: int, generator: torch.Generator) -> Tensor:
    prompt, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPT)
    pipe.scheduler.set_timesteps(steps)
    latents = pipe.prepare_latents(1, 4, 64, 64, prompt.dtype, "cpu", generator)
    sizes = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), prompt.dtype, pooled.shape[-1])
    added = {"text_embeds": torch.cat([negative_pooled, pooled]), "time_ids": torch.cat([sizes] * 2)}
    told = torch.cat([negative, prompt])
    for t in pipe.scheduler.timesteps:
        seen = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), t)
        output = guided(pipe.unet(seen, t, encoder_hidden_states=told, added_cond_kwargs=added).sample)
        latents = pipe.scheduler.step(output, t, latents, **extras(pipe, generator)).prev_sample
    return decoded(pipe, latents)


def inpaint(pipe: Any, steps: int, generator: torch.Generator) -> Tensor:
    """For a UNet of 9 channels."""
    image, mask = inpaint_inputs()
    prompt, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    pipe.scheduler.set_timesteps(steps)
    pixels, masks = pipe.image_processor.preprocess(image, 64, 64), pipe.mask_processor.preprocess(mask, 64, 64)
    latents, *_ = pipe.prepare_latents(1, 4, 64, 64, prompt.dtype, "cpu", generator)
    masks, masked = pipe.prepare_mask_latents(
        masks, pixels * (masks < 0.5), 1, 64, 64, prompt.dtype, "cpu", generator, True
    )
    told = torch.cat([negative, prompt])
    for t in pipe.scheduler.timesteps:
        seen = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), t)
        output = guided(pipe.unet(torch.cat([seen, masks, masked], 1), t, encoder_hidden_states=told).sample)
        latents = pipe.scheduler.step(output, t, latents, **extras(pipe, generator)).prev_sample
    return decoded(pipe, latents)


def inpaint_inputs() -> tuple[Any, Any]:
    """A picture, and a mask of its left half."""
    image = tiny.picture(64, 64)
    mask = image.convert("L").point(lambda _: 0)
    mask.paste(255, (0, 0, 32, 64))
    return image, mask


def upscale(pipe: Any, steps: int, generator: torch.Generator) -> Tensor:
    """The x2 upscaler's, whose network predicts another way."""
    low, scheduler = tiny.latents(1, 8, 8), pipe.scheduler
    prompt, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPT, "cpu", True)
    scheduler.set_timesteps(steps)
    latents = pipe.prepare_latents(1, 4, 16, 16, prompt.dtype, "cpu", generator)
    level = torch.cat([torch.ones(2, 64), torch.zeros(2, 64)], 1)
    times = torch.cat([level, torch.cat([negative_pooled, pooled])], 1)
    told, concat = torch.cat([negative, prompt]), F.interpolate(low, scale_factor=2)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        seen = torch.cat([scheduler.scale_model_input(torch.cat([latents] * 2), t), torch.cat([concat] * 2)], 1)
        output = pipe.unet(seen, sigma.log() / 4, encoder_hidden_states=told, timestep_cond=times).sample[:, :-1]
        output = torch.cat([latents] * 2) / (sigma**2 + 1) + scheduler.scale_model_input(sigma, t) * output
        output = guided(output)
        latents = scheduler.step(output, t, latents, **extras(pipe, generator)).prev_sample
    return decoded(pipe, latents)


LOOPS: dict[str, Any] = {
    "StableDiffusionPipeline": (text_to_image, tiny.sd1_folder, {"height": 64, "width": 64}),
    "StableDiffusionXLPipeline": (text_to_image_xl, tiny_xl.base_folder, {"height": 64, "width": 64}),
    "StableDiffusionInpaintPipeline": (inpaint, tiny.inpaint_folder, {"height": 64, "width": 64}),
    "StableDiffusionLatentUpscalePipeline": (upscale, tiny.x2_folder, {}),
}


def pipelines(kind: str) -> tuple[Any, Any]:
    """Ours and diffusers'."""
    folder = LOOPS[kind][1]()
    pipes = getattr(face, kind).from_pretrained(folder), getattr(diffusers, kind).from_pretrained(folder)
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes


def compare(
    kind: str, pipes: tuple[Any, Any], steps: int, names: tuple[str, ...] = tuple(SCHEDULER_CLASSES)
) -> Iterator[tuple[str, tuple[float, float] | str]]:
    """How far a loop's picture is from our pipeline's and from diffusers', or why diffusers makes none."""
    loop, _, call = LOOPS[kind]
    call = {**call, "guidance_scale": SCALE, "num_inference_steps": steps, "output_type": "pt"}
    if loop is inpaint:
        call |= dict(zip(("image", "mask_image"), inpaint_inputs(), strict=True))
    call |= {"image": tiny.latents(1, 8, 8)} if loop is upscale else {}
    before = [pipe.scheduler.config for pipe in pipes]
    for name in names:
        changes = {"prediction_type": X2_PREDICTION.get(name, "sample")} if loop is upscale else {}
        changes |= {"noise_sampler_seed": 0} if name == "DPMSolverSDEScheduler" else {}

        def picture(pipe: Any) -> Tensor:
            return torch.as_tensor(pipe(PROMPT, generator=torch.manual_seed(0), **call).images)

        try:
            for room, pipe, config in zip((face, diffusers), pipes, before, strict=True):
                pipe.scheduler = getattr(room, name).from_config(config, **changes)
            expected = picture(pipes[1])
        except Exception as error:  # noqa: BLE001 - whatever diffusers raises
            yield name, f"diffusers: {type(error).__name__}: {error}"[:150]
            continue
        with torch.no_grad():
            made = loop(pipes[0], steps, torch.manual_seed(0))
        yield name, (max_difference(made, picture(pipes[0])), max_difference(made, expected))
