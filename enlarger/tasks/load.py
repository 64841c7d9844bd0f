"""Any checkpoint, read once, as the task that it was trained for."""

from enlarger.runtime.runtime import Offload, Runtime, resolve_device, resolve_dtype
from enlarger.tasks.depth import DepthToImage, load_depth_estimator
from enlarger.tasks.generate import Generator
from enlarger.tasks.loading import Location, as_checkpoint
from enlarger.tasks.refine import Refiner
from enlarger.tasks.repair import Inpainter
from enlarger.tasks.stable_diffusion import build_stable_diffusion
from enlarger.tasks.upscale.upscale import Upscaler, build_upscaler

LoadedTask = Upscaler | Generator | Refiner | Inpainter | DepthToImage


def load(model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none") -> LoadedTask:
    """A folder in diffusers' layout, a single file, or a name in the cache, as a task that takes its verb's request.

    What a path cannot say (the prediction of a Stable Diffusion 2 file, leave to open a pickle) goes into a
    `Checkpoint`. Raises CheckpointError naming the file for what is missing, damaged or unknown.
    """
    torch_device = resolve_device(device)
    runtime, name = Runtime(torch_device, offload), str(model)
    bundle = as_checkpoint(model).open(resolve_dtype(precision, torch_device))
    upscaler = build_upscaler(bundle, runtime, name)
    if upscaler is not None:
        return upscaler
    checkpoint_model = build_stable_diffusion(bundle, runtime, name).require_task(
        "generate", "refine", "inpaint", "depth"
    )
    if checkpoint_model.task == "depth":
        return DepthToImage(checkpoint_model, load_depth_estimator(checkpoint_model))
    return {"generate": Generator, "refine": Refiner, "inpaint": Inpainter}[checkpoint_model.task](checkpoint_model)
