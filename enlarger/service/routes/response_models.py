"""What the service answers, as pydantic models: they are the OpenAPI document's schemas."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from enlarger.service.jobs.manager import ServiceState


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="what was found, what was expected, what to do")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="the field that it is about")
    code: str | None = Field(examples=["invalid_value"])


class Error(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Picture(BaseModel):
    """One result: the picture itself or its address."""

    b64_json: str | None = Field(None, description="the file in base64")
    url: str | None = Field(None, description="where the file is, until it expires")
    revised_prompt: str | None = Field(None, description="always null: prompts are not revised")
    width: int
    height: int
    seed: int | None = None
    format: str = Field(examples=["png"])
    flagged: bool | None = Field(None, description="what a safety checker said, where there is one")


class InputTokens(BaseModel):
    """What was given, in tokens."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens: of the prompt those of the text encoder, of a picture one for 16x16 pixels."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    total_tokens: int


class Extras(BaseModel):
    """What is known of how the pictures came to be."""

    id: str = Field(description="the job")
    model: str
    seed: int | None = Field(description="of the first picture")
    seeds: list[int]
    recipe: dict[str, Any] | None = Field(description="what makes the same pictures again")
    timings: dict[str, float] = Field(description="seconds")
    consistency: float | None = Field(description="how far the reduced result is from the input")
    changed: list[dict[str, Any]] | None = Field(description="what inpainting changed, by picture")
    warnings: list[str] = Field(description="what was not done as asked, or was guessed")


class Images(BaseModel):
    """Finished pictures."""

    model_config = ConfigDict(json_schema_extra={"title": "Images"})

    created: int = Field(description="seconds since 1970")
    data: list[Picture]
    background: Literal["transparent", "opaque"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    quality: str | None = None
    size: str | None = Field(None, examples=["512x512"])
    usage: Usage
    enlarger: Extras


class JobReply(BaseModel):
    """A job: how far it is, and its result."""

    id: str
    object: Literal["job"]
    status: Literal["queued", "running", "succeeded", "failed", "canceled"]
    task: Literal["upscale", "generate", "refine", "inpaint"]
    model: str
    created: float
    started: float | None
    finished: float | None
    position: int | None = Field(description="jobs before this one; 0 while it runs, null afterwards")
    progress: float = Field(ge=0, le=1)
    stage: str | None
    step: int | None
    steps: int | None
    eta_seconds: float | None
    preview_url: str | None
    result: Images | None
    error: ErrorDetail | None


class JobList(BaseModel):
    """Jobs, the newest first."""

    object: Literal["list"]
    data: list[JobReply]
    has_more: bool


class CanceledRequest(BaseModel):
    """A request that was canceled by its Idempotency-Key."""

    object: Literal["request"]
    canceled: Literal[True]
    job: JobReply | None = Field(description="null where it had none yet; should it still come, it is answered 499")


class Deleted(BaseModel):
    """A job that is gone, with its files."""

    id: str
    object: Literal["job"]
    deleted: Literal[True]


class QueueReply(BaseModel):
    """How busy the service is."""

    state: ServiceState
    counts: dict[str, int] = Field(description="jobs by status")
    capacity: int = Field(description="jobs that may wait")
    expected_wait_seconds: float


class ModelExtras(BaseModel):
    """What a model can do."""

    kind: str | None
    tasks: list[str]
    aliases: list[str]
    unused_options: list[str] = Field(description="what changes nothing for it, by the names of the Python functions")
    input_pixels: int = Field(description="pixels of a picture that it takes at most")
    output_pixels: int = Field(description="pixels of a result at most")
    loaded_bytes: int | None = Field(description="null while its weights are not loaded")
    error: str | None = Field(description="why it cannot be used")


class ModelReply(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    enlarger: ModelExtras


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelReply]


class RootStatus(BaseModel):
    """The service is there."""

    status: Literal[True]


class Health(BaseModel):
    """The service lives."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """The service takes requests."""

    status: Literal["ready"]
    state: ServiceState


class Unready(BaseModel):
    """The service does not take requests yet, or no longer."""

    error: ErrorDetail
    state: ServiceState


class LlamaProblem(BaseModel):
    """An error in llama.cpp's form."""

    code: int
    message: str
    type: str


class LlamaUnready(BaseModel):
    """Not ready, in llama.cpp's form."""

    error: LlamaProblem


class Info(BaseModel):
    """What this service is."""

    name: Literal["enlarger"]
    version: str
    state: ServiceState
    devices: list[str]
    models: list[ModelReply]
    limits: dict[str, Any]
    keys: bool = Field(description="requests need a key")
    fetch: bool = Field(description="pictures may be given by address")
    decoder_confinement: list[str] = Field(
        description="what keeps a decoder that is taken over from files and the network: `landlock`, `seccomp`"
    )
    schedulers: list[str]
