"""A job: what is to be done, how far it is, and its result. All of it is JSON, so that it outlives the process."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from enlarger.service.problems import Problem

Task = Literal["upscale", "generate", "refine", "inpaint"]
JobStatus = Literal["queued", "running", "succeeded", "failed", "canceled"]
EventKind = Literal["queued", "started", "progress", "preview", "succeeded", "failed", "canceled"]
FINISHED_STATUSES: frozenset[JobStatus] = frozenset({"succeeded", "failed", "canceled"})
RESULT_FILE = "done.json"  # in a job's folder; written last, and whole or not at all: with it the job is complete
_ID = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True)
class OutputOptions:
    """How results are written."""

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 95  # of jpeg and webp, 1..100


@dataclass(frozen=True)
class JobSpec:
    """What is to be done. `options` are fields of the task's request (`requests.py`) except image and mask; those lie
    in the job's folder as PNG files that the decoder wrote, under the names here."""

    task: Task
    model: str  # a name in the settings
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    image: str | None = None
    mask: str | None = None  # grey, white is repainted
    size: tuple[int, int] | None = None  # width and height of the result, in pixels, where it is known beforehand
    default_steps: int = 1  # what the model takes where the options do not say
    output: OutputOptions = OutputOptions()
    previews: int = 0  # partial pictures to make, evenly spread over the steps
    live: bool = False  # a person watches: small previews, at most four a second
    notes: tuple[str, ...] = ()  # what the decoder and the route have to say to the user

    @property
    def batch_key(self) -> str | None:
        """Jobs with the same text may share a batch; None for those that never do."""
        if self.task not in ("generate", "upscale") or self.options.get("count", 1) != 1 or self.size is None:
            return None
        per_job = {"seed", "prompt", "negative"}
        shared = {key: value for key, value in self.options.items() if key not in per_job}
        return json.dumps([self.task, self.model, self.size, shared], sort_keys=True)


@dataclass(frozen=True)
class ResultImage:
    """A finished picture: a file of the job's folder."""

    file: str
    width: int
    height: int
    seed: int | None = None
    format: Literal["png", "jpeg", "webp"] = "png"
    bytes: int = 0
    flagged: bool | None = None  # what a safety checker said, where there is one


@dataclass(frozen=True)
class JobResult:
    """What a worker made of a job, as it is in RESULT_FILE."""

    images: tuple[ResultImage, ...]
    model: str = ""
    notes: tuple[str, ...] = ()
    consistency: float | None = None  # the largest of its pictures
    changed: tuple[Mapping[str, Any], ...] | None = None  # what inpainting changed, by picture
    tokens: int = 0  # of the prompt
    timings: Mapping[str, float] = field(default_factory=dict[str, float])  # seconds of each part
    recipe: Mapping[str, Any] | None = None  # the generation metadata


@dataclass(frozen=True)
class Idempotency:
    """What makes a request known when it is sent again."""

    key: str  # Idempotency-Key
    fingerprint: str  # of all that the request says, its pictures included


@dataclass(frozen=True)
class Job:
    """A job as the store knows it. Times are seconds since 1970."""

    id: str
    spec: JobSpec
    status: JobStatus
    created: float
    owner: str = ""  # a hash of the key it came with, "" without keys
    attached: bool = False  # a client waits on its connection; without it the job is canceled
    idempotency_key: str | None = None  # Idempotency-Key
    fingerprint: str | None = None  # of the request that brought that key
    started: float | None = None
    finished: float | None = None
    crashes: int = 0  # workers that died over it
    attempts: int = 0
    result: JobResult | None = None
    problem: Problem | None = None

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED_STATUSES


@dataclass(frozen=True)
class JobProgress:
    """How far a job is at this moment."""

    position: int | None  # jobs before this one and itself; 0 while it runs, None afterwards
    progress: float = 0.0  # 0..1
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None  # until it ends, the wait included
    preview: str | None = None  # a file in the job's folder


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job; numbers count from 1 in each job."""

    number: int
    kind: EventKind
    data: Mapping[str, Any]

    @property
    def is_last(self) -> bool:
        return self.kind in FINISHED_STATUSES


def new_job_id() -> str:
    """An identifier nobody can guess: 128 bits."""
    return secrets.token_urlsafe(16)


def is_job_id(text: str) -> bool:
    """Whether a text from outside has the form of an identifier, and so can name a folder."""
    return _ID.fullmatch(text) is not None


def job_folder(data: Path, id: str) -> Path:
    """Where a job keeps its files: the input, previews, results."""
    assert is_job_id(id)
    return data / "jobs" / id
