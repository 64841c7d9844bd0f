"""What is answered: a job and what its worker wrote as JSON, and every error in one form."""

from pathlib import Path

from fastapi import Request

from enlarger.service.jobs.job import Job, JobProgress, JobResult, ResultImage, job_folder
from enlarger.service.problems import CANCELED, Problem, ProblemError, problem_error
from enlarger.service.routes.base64_stream import placeholder
from enlarger.strict_json import Json

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
TOKEN_SIDE = 16  # pixels: one image token for TOKEN_SIDE x TOKEN_SIDE


def names_etag(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this version: proxies mark tags as weak, and a client may name several, or any."""
    names = [name.strip().removeprefix("W/") for name in (if_none_match or "").split(",")]
    return etag in names or "*" in names


def get_base_url(request: Request) -> str:
    """Where this service is, as the client calls it; without a slash at the end."""
    return str(request.base_url).rstrip("/")


def job_json(job: Job, progress: JobProgress, base_url: str) -> Json:
    """A job, whole."""
    succeeded = job.status == "succeeded"
    problem = problem_of_job(job)
    preview = None if progress.preview is None else preview_url(base_url, job.id)
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "task": job.spec.task,
        "model": job.spec.model,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "position": None if job.is_finished else progress.position,
        "progress": 1.0 if succeeded else progress.progress,
        "stage": None if job.is_finished else progress.stage,
        "step": None if job.is_finished else progress.step,
        "steps": None if job.is_finished else progress.steps,
        "eta_seconds": None if job.is_finished else progress.eta_seconds,
        "preview_url": preview,
        "result": images_json(job, base_url) if succeeded else None,
        "error": None if problem is None else problem.body()["error"],
    }


def preview_url(base_url: str, id: str) -> str:
    return f"{base_url}/v1/jobs/{id}/preview"


def content_url(base_url: str, id: str, index: int, count: int) -> str:
    """The address of a result."""
    return f"{base_url}/v1/images/{id}/content" + (f"?variant={index}" if count > 1 else "")


def problem_of_job(job: Job) -> Problem | None:
    """Why a job gave nothing."""
    if job.status not in ("failed", "canceled"):
        return None
    return CANCELED if job.problem is None else job.problem


def images_json(job: Job, base_url: str, nonce: str | None = None) -> Json:
    """What a finished job made. With a nonce the pictures are there, as placeholders, instead of their addresses."""
    result = result_of_job(job)
    count = len(result.images)
    sizes = {f"{image.width}x{image.height}" for image in result.images}
    return {
        "created": int(job.created if job.finished is None else job.finished),
        "data": [
            (
                {"url": content_url(base_url, job.id, index, count)}
                if nonce is None
                else {"b64_json": placeholder(nonce, index)}
            )
            | _image_json(image)
            for index, image in enumerate(result.images)
        ],
        "background": "opaque" if job.spec.task == "generate" else None,
        "output_format": job.spec.output.format,
        "quality": None,
        "size": sizes.pop() if len(sizes) == 1 else None,
        "usage": usage_json(result),
        "enlarger": _extras_json(job, result),
    }


def result_of_job(job: Job) -> JobResult:
    """What the worker wrote. Raises ProblemError for a job without it."""
    problem = problem_of_job(job)
    if problem is not None:
        raise ProblemError(problem)
    if job.result is None:
        raise problem_error(404, "job_not_found", f"job {job.id} is {job.status}, it has no pictures yet")
    return job.result


def result_files(job: Job, data: Path) -> list[Path]:
    """The files of the pictures."""
    folder = job_folder(data, job.id)
    return [folder / image.file for image in result_of_job(job).images]


def _image_json(image: ResultImage) -> Json:
    about = {"width": image.width, "height": image.height, "seed": image.seed, "format": image.format}
    return {"revised_prompt": None, **about, "flagged": image.flagged}


def usage_json(result: JobResult) -> Json:
    """Tokens of the prompt, of the input and of the results."""
    size = None if result.recipe is None else result.recipe.get("input")
    image = 0 if size is None else image_tokens(int(size["width"]), int(size["height"]))
    output_tokens = sum(image_tokens(one.width, one.height) for one in result.images)
    return {
        "input_tokens": result.tokens + image,
        "input_tokens_details": {"text_tokens": result.tokens, "image_tokens": image},
        "output_tokens": output_tokens,
        "total_tokens": result.tokens + image + output_tokens,
    }


def image_tokens(width: int, height: int) -> int:
    """How many tokens a picture counts as."""
    return -(-width // TOKEN_SIDE) * -(-height // TOKEN_SIDE)


def _extras_json(job: Job, result: JobResult) -> Json:
    seeds = [image.seed for image in result.images if image.seed is not None]
    queue_timing = {} if job.started is None else {"queue": round(max(job.started - job.created, 0.0), 6)}
    return {
        "id": job.id,
        "model": job.spec.model,
        "seed": seeds[0] if seeds else None,
        "seeds": seeds,
        "recipe": result.recipe,
        "timings": {**queue_timing, **result.timings},
        "consistency": result.consistency,
        "changed": result.changed,
        "warnings": list(dict.fromkeys((*job.spec.notes, *result.notes))),
    }
