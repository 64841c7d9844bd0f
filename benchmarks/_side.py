"""One side of a comparison in a process of its own: load, run once to warm up, run again, and say what that took.

It imports nothing of this repository but `enlarger`, and that from where its interpreter finds it: so it measures any
build. Both sides get the same weights, picture, seed, steps and threads; "face" makes the very calls of "diffusers".
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Run = Callable[[int], Any]  # of the number of steps, gives an array (H, W, 3) in 0..1
PROMPT, SEED, HANDOFF = "a photo of a town by the sea", 2, 0.8
PIPELINES = {
    "x2": "StableDiffusionLatentUpscalePipeline",
    "x4": "StableDiffusionUpscalePipeline",
    "text_to_image": "StableDiffusionPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
PAGE = 4096
REFINER_PIPELINE = "StableDiffusionXLImg2ImgPipeline"


@dataclass(frozen=True)
class Job:
    """What a side is to do. `library` is "diffusers", "face" (the same calls, of `enlarger.diffusers`) or "native"."""

    scenario: str
    library: str
    folder: str
    size: int
    steps: int
    guidance: float
    threads: int
    precision: str = "float32"
    engine: str = "torch"  # for the native side
    compiled: bool = False  # for diffusers: its networks through torch.compile
    thrifty: bool = False  # for diffusers: its tiling and slicing on
    device: str = "cpu"
    repeat: int = 1  # runs after the first one; the fastest counts; 0: loading alone
    picture: str | None = None  # where to write the result


def main() -> None:
    """Do the job that the command line holds as JSON, and print what it took."""
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))


def measure(job: Job) -> dict[str, float]:
    """Seconds of loading, of the first run and of one more, and MiB that the process held at most."""
    import torch

    torch.set_num_threads(job.threads)
    import_side(job.library)
    started = time.perf_counter()
    run = load(job)
    loaded, load_peak = time.perf_counter(), peak()
    if job.repeat == 0:
        touched = touch_weights()
        return {"load": loaded - started, "touched": touched, "load_peak": load_peak, "peak": peak()}
    once_more = job.engine == "torch" and not job.compiled
    run(1 if once_more else job.steps)
    warmed, times, made = time.perf_counter(), list[float](), None
    for _ in range(job.repeat):
        begun = time.perf_counter()
        made = run(job.steps)
        if job.device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    if job.picture is not None:
        np.save(job.picture, np.asarray(made, dtype=np.float32))
    found = {"load": loaded - started, "first": warmed - loaded, "run": min(times), "load_peak": load_peak}
    if job.device.startswith("cuda"):
        return found | {"peak": torch.cuda.max_memory_allocated() / 2**20}
    return found | {"peak": peak()}


def import_side(library: str) -> Any:
    """The package that is measured; importing it is no part of loading."""
    return import_module({"diffusers": "diffusers", "face": "enlarger.diffusers", "native": "enlarger"}[library])


def load(job: Job) -> Run:
    """What runs the scenario, loaded."""
    if job.scenario == "autoencoder":
        return load_autoencoder(job)
    return load_native(job) if job.library == "native" else load_pipeline(job)


def load_pipeline(job: Job) -> Run:
    """The pipelines of diffusers, or those of the same names and arguments here."""
    import torch

    package = import_side(job.library)
    dtype = {"torch_dtype": getattr(torch, job.precision)}
    names = [PIPELINES[job.scenario]] + ([REFINER_PIPELINE] if job.scenario == "sdxl" else [])
    folders = [Path(job.folder)] if len(names) == 1 else [Path(job.folder) / "base", Path(job.folder) / "refiner"]
    pipes = [
        getattr(package, name).from_pretrained(str(folder), **dtype)
        for name, folder in zip(names, folders, strict=True)
    ]
    for pipe in pipes:
        prepare_pipeline(pipe, job)

    def run(steps: int) -> Any:
        shared = {"prompt": PROMPT, "num_inference_steps": steps, "guidance_scale": job.guidance}
        generator = torch.Generator().manual_seed(SEED)
        inputs = {**shared, **pipeline_inputs(job), "generator": generator}
        if len(pipes) == 1:
            return pipes[0](**inputs, output_type="np").images[0]
        if steps == 1:  # too few to share
            inputs["num_inference_steps"] = 5
        latents = pipes[0](**inputs, denoising_end=HANDOFF, output_type="latent").images
        rest = {"num_inference_steps": inputs["num_inference_steps"], "generator": generator}
        return pipes[1](**{**shared, **rest}, image=latents, denoising_start=HANDOFF, output_type="np").images[0]

    return run


def prepare_pipeline(pipe: Any, job: Job) -> None:
    """Put it on the device; with `thrifty` and `compiled` as its documentation advises."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    pipe.to(job.device)
    if job.thrifty and job.library == "diffusers":  # ours chooses its tiles itself
        pipe.vae.enable_tiling()
        pipe.vae.enable_slicing()
        pipe.enable_attention_slicing()
    if job.compiled:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
        pipe.unet.fuse_qkv_projections()
        mode = "max-autotune" if job.device.startswith("cuda") else None
        pipe.unet = torch.compile(pipe.unet, mode=mode)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode)


def pipeline_inputs(job: Job) -> dict[str, Any]:
    """What a scenario's pipeline is given beside the prompt."""
    sides = {"width": job.size, "height": job.size}
    match job.scenario:
        case "x2":
            return {"image": photo(job.size)}
        case "x4":
            return {"image": photo(job.size), "noise_level": 20}
        case "inpaint":
            return {"image": photo(job.size), "mask_image": mask(job.size), **sides}
        case _:
            return sides


def load_native(job: Job) -> Run:
    """Our own verbs, as a user calls them; the pictures are of 8 bits."""
    import enlarger

    options: dict[str, Any] = {"precision": job.precision, "device": job.device}
    options |= {} if job.engine == "torch" else {"engine": job.engine}
    if job.scenario == "sdxl":
        base, refiner = Path(job.folder) / "base", Path(job.folder) / "refiner"
        task: Any = enlarger.load_generator(base, refiner=refiner, **options)
    else:
        task = enlarger.load(job.folder, **options)
    source, inputs = native_inputs(job)

    def run(steps: int) -> Any:
        made = task(source, **inputs, solver="euler", guidance=job.guidance, seed=SEED, steps=steps)
        return as_array(made.image)

    return run


def native_inputs(job: Job) -> tuple[Any, dict[str, Any]]:
    """What a scenario's verb is given."""
    match job.scenario:
        case "x2":
            return photo(job.size), {"prompt": PROMPT}
        case "x4":
            return photo(job.size), {"prompt": PROMPT, "by": 4, "noise_level": 20}
        case "inpaint":
            return photo(job.size), {"prompt": PROMPT, "mask": mask(job.size), "preserve": "none"}
        case _:
            return PROMPT, {"width": job.size, "height": job.size}


def load_autoencoder(job: Job) -> Run:
    """Decoding latents to pictures of `size` pixels; from `thrifty` on in diffusers' tiles, here in exact ones."""
    import torch

    package = import_side("face" if job.library == "native" else job.library)
    network = package.AutoencoderKL.from_pretrained(
        job.folder, subfolder="vae", torch_dtype=getattr(torch, job.precision)
    )
    network.to(job.device)
    if job.thrifty and job.library == "diffusers":
        network.enable_tiling()
    side = job.size // 8
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(SEED))

    def run(steps: int) -> Any:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            decoded = network.decode(latents.to(job.device, getattr(torch, job.precision))).sample
        return (decoded[0].float().cpu().permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()

    return run


def photo(size: int) -> Image.Image:
    """A smooth picture, the same everywhere."""
    colours = np.random.default_rng(0).integers(0, 256, (max(4, size // 16), max(4, size // 16), 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC)


def mask(size: int) -> Image.Image:
    """White in the middle."""
    drawn = Image.new("L", (size, size))
    drawn.paste(255, (size // 4, size // 4, size * 3 // 4, size * 3 // 4))
    return drawn


def as_array(image: Image.Image) -> Any:
    """(H, W, 3) in 0..1."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def touch_weights() -> float:
    """The seconds that it takes to read a number of every page of every weight that this process holds."""
    import gc

    import torch

    started = time.perf_counter()
    for one in gc.get_objects():
        if isinstance(one, torch.nn.Parameter) and not one.is_meta:
            one.detach().reshape(-1)[:: PAGE // one.element_size()].sum()
    return time.perf_counter() - started


def peak() -> float:
    """The most memory that this process has held, in MiB. A child's own: `ru_maxrss` would start at its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
