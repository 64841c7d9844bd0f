"""What the service answers, read: jobs, models, results, and its errors as the library's."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace

from PIL import Image

from enlarger.errors import Cancelled, CheckpointError, EnlargerError, InputError, NonFinite, ServiceError, Unsupported
from enlarger.strict_json import Json

FINISHED_STATUSES = frozenset({"succeeded", "failed", "canceled"})
ERRORS_BY_CODE: dict[str, type[EnlargerError]] = {
    "unsupported": Unsupported,
    "canceled": Cancelled,
    "non_finite_output": NonFinite,
    "model_unusable": CheckpointError,
}


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""

    def json(self) -> Json:
        """The object in its body; ServiceError for anything else."""
        data: Json | None = None
        with suppress(ValueError):
            data = json.loads(self.body)
        if not isinstance(data, dict):
            start = self.body[:80].decode(errors="replace")
            raise ServiceError(
                f"the service answered {self.status} with {start!r}, expected a JSON object", self.status
            )
        return data


@dataclass(frozen=True)
class NoResponse:
    """No answer: the connection could not be made, or broke."""

    reason: str


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    stage: str
    done: int
    total: int
    eta_seconds: float | None = None
    position: int | None = None  # jobs before this one; 0 while it runs


@dataclass(frozen=True)
class Job:
    """A job, as the service describes it. Times are seconds since 1970."""

    id: str
    status: str  # queued, running, succeeded, failed or canceled
    task: str = ""
    model: str = ""
    created: float | None = None
    started: float | None = None
    finished: float | None = None
    position: int | None = None
    progress: float = 0.0
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None
    preview_url: str | None = None
    result: Json | None = None
    error: Json | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FINISHED_STATUSES

    @property
    def current_progress(self) -> Progress:
        """Its progress, as `watch` receives it."""
        stage = ("queued" if self.status == "queued" else "working") if self.stage is None else self.stage
        return Progress(stage, self.step or 0, self.steps or 1, self.eta_seconds, self.position)

    def with_update(self, update: Json) -> "Job":
        """The job after an event; what is not known here is left out."""
        return replace(self, **{name: value for name, value in update.items() if name in JOB_FIELDS})


JOB_FIELDS = frozenset(item.name for item in fields(Job))


@dataclass(frozen=True)
class Model:
    """A model that the service has."""

    id: str
    kind: str | None = None
    tasks: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    loaded_bytes: int | None = None  # None while its weights are not loaded
    error: str | None = None  # why it cannot be used


@dataclass(frozen=True)
class Health:
    """Whether the service takes requests, and its state: STARTING, READY, BUSY, SETUP_FAILED, DEFUNCT or UNHEALTHY."""

    ready: bool
    state: str


@dataclass(frozen=True)
class Result:
    """The pictures made, the seed of each, and what the service reports about them."""

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    model: str
    id: str  # of the job
    notes: tuple[str, ...] = ()
    consistency: float | None = None  # largest difference of the reduced copy to the input, in 8-bit steps
    recipe: Json | None = None  # generation metadata: what makes the same pictures again
    files: tuple[bytes, ...] = field(default=(), repr=False)  # as they came, with the generation metadata in them

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]

    @property
    def generation(self) -> tuple[Json, ...]:
        """What made each picture, as its file says it."""
        if self.recipe is None:
            return ()
        return tuple(self.recipe | {"seeds": [seed]} for seed in self.seeds)


def job_from_json(data: Json) -> Job:
    """A job of its JSON."""
    if not (isinstance(data.get("id"), str) and isinstance(data.get("status"), str)):
        raise ServiceError(
            f"found {', '.join(sorted(data))} in the service's answer, expected a job with id and status"
        )
    return Job(data["id"], data["status"]).with_update(data)


def model_from_json(data: Json) -> Model:
    """A model of its JSON; other servers of OpenAI's API give the name alone."""
    extension: Json = data.get("enlarger") or {}
    lists = {name: tuple(extension.get(name) or ()) for name in ("tasks", "aliases")}
    return Model(
        data["id"],
        extension.get("kind"),
        **lists,
        loaded_bytes=extension.get("loaded_bytes"),
        error=extension.get("error"),
    )


def health_from_response(response: HttpResponse) -> Health:
    """What /readyz says."""
    data = response.json()
    if response.status not in (200, 503) or "state" not in data:
        raise error_from_response(response)
    return Health(response.status == 200, str(data["state"]))


def result_from_json(data: Json, images: tuple[Image.Image, ...], files: tuple[bytes, ...]) -> Result:
    """A result of its JSON and its files."""
    extension: Json = data.get("enlarger") or {}
    return Result(
        images,
        tuple(extension.get("seeds") or ()),
        str(extension.get("model") or ""),
        str(extension.get("id") or ""),
        tuple(extension.get("warnings") or ()),
        extension.get("consistency"),
        extension.get("recipe"),
        files,
    )


def error_from_response(response: HttpResponse) -> EnlargerError:
    """The error of an answer that is no success."""
    try:
        error = error_from_json(json.loads(response.body)["error"], response.status)
    except (ValueError, KeyError, TypeError):
        start = " ".join(response.body[:200].decode(errors="replace").split())
        error = ServiceError(f"the service answered {response.status}: {start or 'nothing'}", response.status)
    request_id = response.headers.get("x-request-id")
    if isinstance(error, ServiceError) and response.status >= 500 and request_id:
        return ServiceError(f"{error} (request {request_id})", error.status, error.code)
    return error


def error_from_json(data: Json, status: int | None = None) -> EnlargerError:
    """The error of an error's JSON, in an answer or in a job."""
    message, code = str(data["message"]), data.get("code")
    if code in ERRORS_BY_CODE:
        return ERRORS_BY_CODE[code](message)
    if status == 400 or (status is None and data.get("type") == "invalid_request_error"):
        return InputError(message)
    return ServiceError(message, status, None if code is None else str(code))
