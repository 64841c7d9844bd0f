"""Any checkpoint, read once, as the task that it was trained for."""

from enlarger.runtime.runtime import Offload, Runtime, pick_device, pick_precision
from enlarger.tasks.depth import DepthToImage, estimator_of
from enlarger.tasks.enlarge import Upscaler, upscaler_of
from enlarger.tasks.generate import Generator
from enlarger.tasks.model import model_of
from enlarger.tasks.reading import Location, checkpoint_at
from enlarger.tasks.refine import Refiner
from enlarger.tasks.repair import Repairer

Task = Upscaler | Generator | Refiner | Repairer | DepthToImage


def load(model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none") -> Task:
    """A folder in diffusers' layout, a single file, or a name in the cache, as a task that takes its verb's request.

    What a path cannot say (the prediction of a Stable Diffusion 2 file, leave to open a pickle) goes into a
    `Checkpoint`. Raises CheckpointError naming the file for what is missing, damaged or unknown.
    """
    place = pick_device(device)
    runtime, name = Runtime(place, offload), str(model)
    bundle = checkpoint_at(model).open(pick_precision(precision, place))
    upscaler = upscaler_of(bundle, runtime, name)
    if upscaler is not None:
        return upscaler
    found = model_of(bundle, runtime, name).for_task("generate", "refine", "inpaint", "depth")
    if found.task == "depth":
        return DepthToImage(found, estimator_of(found))
    return {"generate": Generator, "refine": Refiner, "inpaint": Repairer}[found.task](found)
