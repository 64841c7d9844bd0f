"""What AUTOMATIC1111's API tells and sets: models, samplers, options, progress."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from enlarger.service.dependencies import get_service
from enlarger.service.jobs.job import JobProgress
from enlarger.service.problems import problem_error
from enlarger.service.routes.a1111.models import NO_UPSCALER, checkpoints, find_checkpoint, upscalers
from enlarger.service.routes.a1111.payloads import check_options
from enlarger.service.routes.a1111.samplers import SAMPLERS, SCHEDULERS
from enlarger.service.routes.a1111.session import get_session
from enlarger.service.routes.request_body import printable, read_body

router = APIRouter(prefix="/sdapi/v1", include_in_schema=False)
EMPTY_LISTS = ("hypernetworks", "face-restorers", "realesrgan-models", "latent-upscale-modes", "sd-vae", "script-info")


@router.get("/sd-models")
async def sd_models(request: Request) -> Response:
    """The checkpoints, by the names that requests call them."""
    names = [model.name for model in checkpoints(get_service(request))]
    return JSONResponse(
        [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
            for name in names
        ]
    )


@router.get("/upscalers")
async def list_upscalers(request: Request) -> Response:
    """The models that enlarge; None is there because clients expect it."""
    names = [NO_UPSCALER, *(model.name for model in upscalers(get_service(request)))]
    return JSONResponse(
        [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in names]
    )


@router.get("/loras")
async def loras(request: Request) -> Response:
    """The LoRAs of the folder of models."""
    names = get_service(request).jobs.adapters().loras
    return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in names])


@router.get("/prompt-styles")
async def prompt_styles(request: Request) -> Response:
    """The styles of the folder of models."""
    styles = get_service(request).jobs.adapters().styles
    return JSONResponse(
        [{"name": name, "prompt": prompt, "negative_prompt": negative} for name, (prompt, negative) in styles.items()]
    )


@router.get("/samplers")
async def samplers() -> Response:
    """The samplers by their names there."""
    return JSONResponse([{"name": name, "aliases": [], "options": {}} for name in SAMPLERS])


@router.get("/schedulers")
async def schedulers() -> Response:
    """The schedules of noise levels."""
    return JSONResponse(
        [
            {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
            for name, label in SCHEDULERS.items()
        ]
    )


@router.get("/scripts")
async def scripts() -> Response:
    """There are none."""
    return JSONResponse({"txt2img": [], "img2img": []})


@router.get("/embeddings")
async def embeddings() -> Response:
    """None can be asked for."""
    return JSONResponse({"loaded": {}, "skipped": {}})


@router.get("/options")
async def get_options(request: Request) -> Response:
    """Those that can be set, as they are for this key."""
    options = get_session(request).options
    names = [model.name for model in checkpoints(get_service(request))]
    defaults = {"sd_model_checkpoint": names[0] if names else None, "CLIP_stop_at_last_layers": 1}
    return JSONResponse(defaults | options | {"sd_vae": "Automatic", "samples_format": "png"})


@router.post("/options")
async def set_options(request: Request) -> Response:
    """Choose a checkpoint or a layer of the text encoder for the requests of this key."""
    service = get_service(request)
    async with read_body(request, allow_form=False, allow_json=True, dialect="a1111") as request_body:
        options = check_options({**request_body.values, **request_body.files})
    if "sd_model_checkpoint" in options:
        options["sd_model_checkpoint"] = find_checkpoint(service, str(options["sd_model_checkpoint"])).name
    get_session(request).options.update(options)
    return JSONResponse({})


@router.get("/progress")
async def progress(request: Request) -> Response:
    """How far the oldest request of this key is that has not been answered."""
    service, ids = get_service(request), get_session(request).jobs
    job = await service.jobs.get(ids[0]) if ids else None
    found = JobProgress(None) if job is None else service.jobs.progress(job)
    is_known = job is not None and not job.is_finished
    state: dict[str, Any] = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": job.id if job is not None and is_known else "",
        "job_count": len(ids),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": found.step or 0,
        "sampling_steps": found.steps or 0,
    }
    reply = {"progress": found.progress if is_known else 0.0, "eta_relative": found.eta_seconds or 0.0}
    return JSONResponse(reply | {"state": state, "current_image": None, "textinfo": found.stage})


@router.post("/interrupt")
async def interrupt(request: Request) -> Response:
    """Cancel what this key has asked for here and is not done."""
    service = get_service(request)
    for id in list(get_session(request).jobs):
        await service.jobs.cancel(id)
    return JSONResponse({})


@router.get("/{name}")
async def list_nothing(name: str) -> Response:
    """What there is none of here; other addresses are not found."""
    if name in EMPTY_LISTS:
        return JSONResponse([])
    raise problem_error(
        404, "not_found", f"/sdapi/v1/{printable(name)} is not served here; docs/service.md says what is"
    )
