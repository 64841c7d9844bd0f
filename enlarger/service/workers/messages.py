"""What the server and a worker's process say to each other: one JSON object per line, one union for each direction."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from enlarger.service.jobs.job import JobSpec
from enlarger.service.jobs.model_registry import AdapterNames, ModelState
from enlarger.service.problems import Problem
from enlarger.service.settings import ModelSettings

UNKNOWN_FAILURE = Problem(500, "internal", "the worker failed without saying why; the log of the service may")


class Message(BaseModel):
    """Either direction's."""

    model_config = ConfigDict(frozen=True)

    def encode(self) -> bytes:
        """The message as a line."""
        return self.model_dump_json().encode() + b"\n"


class Start(Message):
    """The first command: what to work with."""

    command: Literal["start"] = "start"
    models: tuple[ModelSettings, ...]
    device: str
    memory: float | None  # GiB of weights
    data: Path  # the folder of the jobs
    prompt_tokens: int = 1500  # of a prompt, at most
    models_folder: Path | None = None  # whose models can be asked for too
    allow_pickle: bool = False


class AssignedJob(Message):
    """A job of a run."""

    id: str
    spec: JobSpec


class Run(Message):
    """Jobs to work on, then to be idle again."""

    command: Literal["run"] = "run"
    jobs: tuple[AssignedJob, ...]


class Cancel(Message):
    """A job whose result nobody wants any more."""

    command: Literal["cancel"] = "cancel"
    id: str


class Load(Message):
    """A model to load, without a job."""

    command: Literal["load"] = "load"
    model: str


class Unload(Message):
    """A model to drop."""

    command: Literal["unload"] = "unload"
    model: str


class Ready(Message):
    """The worker can work; the device by its own name, and what its models are."""

    event: Literal["ready"] = "ready"
    device: str
    models: tuple[ModelState, ...]
    adapters: AdapterNames = AdapterNames()


class Alive(Message):
    """It lives, whatever its main thread does."""

    event: Literal["alive"] = "alive"


class Idle(Message):
    """It waits for work."""

    event: Literal["idle"] = "idle"


class ModelLoading(Message):
    """A model's weights are being read."""

    event: Literal["loading"] = "loading"
    model: str


class LoadedModels(Message):
    """Which models are in memory now, in bytes, and why others could not be loaded."""

    event: Literal["models"] = "models"
    loaded: dict[str, int]
    errors: dict[str, str] = {}


class JobMessage(Message):
    """Something of one job."""

    id: str


class JobStarted(JobMessage):
    """Its work begins."""

    event: Literal["started"] = "started"


class JobProgressed(JobMessage):
    """So much of a stage is done, counted over all pictures of the job."""

    event: Literal["progress"] = "progress"
    stage: str
    done: int
    total: int


class JobPreviewed(JobMessage):
    """A preview is there: a file of the job's folder, and which of those that were asked for; None: for watchers."""

    event: Literal["preview"] = "preview"
    file: str
    index: int | None = None


class JobDone(JobMessage):
    """Its result file is there."""

    event: Literal["done"] = "done"


class JobFailed(JobMessage):
    """It came to nothing."""

    event: Literal["failed"] = "failed"
    problem: Problem = UNKNOWN_FAILURE

    @field_validator("problem", mode="wrap")
    @classmethod
    def _or_unknown(cls, value: object, validate: ValidatorFunctionWrapHandler) -> Problem:
        """The job has failed, whether or not it can be understood why."""
        try:
            return validate(value)
        except ValidationError:
            return UNKNOWN_FAILURE


class JobCanceled(JobMessage):
    """It was canceled, and is let go."""

    event: Literal["canceled"] = "canceled"


class Measurement(Message):
    """A number for the metrics."""

    event: Literal["measured"] = "measured"


class ModelLoadTime(Measurement):
    name: Literal["model_load"] = "model_load"
    model: str
    seconds: float


class StageTime(Measurement):
    name: Literal["stage"] = "stage"
    task: str
    model: str
    stage: str
    seconds: float


class StepTime(Measurement):
    name: Literal["step"] = "step"
    model: str
    seconds: float


class OutOfMemory(Measurement):
    name: Literal["oom"] = "oom"
    fallback: str  # what was done then


class NonFiniteOutput(Measurement):
    name: Literal["nonfinite"] = "nonfinite"
    stage: str


class BatchSize(Measurement):
    name: Literal["batch"] = "batch"
    size: int


class MemoryUse(Measurement):
    name: Literal["memory"] = "memory"
    kind: str
    bytes: int


JobFinished = JobDone | JobFailed | JobCanceled
Measured = Annotated[
    ModelLoadTime | StageTime | StepTime | OutOfMemory | NonFiniteOutput | BatchSize | MemoryUse,
    Field(discriminator="name"),
]
ModelCommand = Load | Unload
Command = Annotated[Start | Run | Cancel | Load | Unload, Field(discriminator="command")]
Event = Annotated[
    Ready
    | Alive
    | Idle
    | ModelLoading
    | LoadedModels
    | JobStarted
    | JobProgressed
    | JobPreviewed
    | JobFinished
    | Measured,
    Field(discriminator="event"),
]
COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
EVENTS: TypeAdapter[Event] = TypeAdapter(Event)
