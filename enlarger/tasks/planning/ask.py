"""The public way to a plan."""

from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest
from enlarger.runtime.runtime import Offload
from enlarger.tasks.loading.load import BUNDLED, Location, load_model
from enlarger.tasks.planning.calibration import CalibratedTimer
from enlarger.tasks.planning.plan import Plan

AnyRequest = UpscaleRequest | GenerateRequest | RefineRequest | InpaintRequest | DepthRequest
VERBS = {
    UpscaleRequest: "upscale",
    GenerateRequest: "generate",
    RefineRequest: "refine",
    InpaintRequest: "inpaint",
    DepthRequest: "depth",
}


def plan(
    request: AnyRequest,
    *,
    model: Location | None = None,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    timed: bool = True,
    calibrate: bool = False,
) -> Plan:
    """What a request will take before it runs: stages, tiles, memory in bytes, network calls, and seconds if `timed`.

    The times follow from a calibration of this machine that is measured in seconds when it is first needed, kept, and
    with `calibrate` made anew. A loaded task has the same as its method `plan`. Raises InputError for a `memory` that
    even the smallest tiles do not keep.
    """
    verb, location = VERBS[type(request)], BUNDLED if model is None else model
    task = load_model(location, device, precision, offload, verb).tasks[verb]
    found: Plan = task.plan(request, CalibratedTimer(renew=calibrate) if timed else None)
    return found
