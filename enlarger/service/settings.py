"""What can be configured of the service: one schema for the file, the environment and the command line's flags."""

import ipaddress
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from enlarger.errors import InputError

MIB, GIB = 1 << 20, 1 << 30
OTHER_VARIABLES = {f"ENLARGER_{name}" for name in ("CONFIG", "HOME", "KEY", "DEBUG")}  # that are no settings
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_KEY_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class StrictModel(BaseModel):
    """A part of the settings: names that it does not have are errors, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(StrictModel):
    """One model that can be asked for."""

    name: str = Field(description="what requests call it")
    path: str = Field(description="a folder, a single file, a name in the cache, or 'bundled'")
    aliases: tuple[str, ...] = Field(default=(), description="other names, such as dall-e-2")
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto", description="number format; int8 with the engine openvino alone"
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none", description="keep a network off the device while it is not at work"
    )
    engine: Literal["torch", "compile", "openvino"] = Field(
        default="torch", description="what computes the networks: torch, torch.compile, or OpenVINO on a CPU"
    )
    variant: str | None = Field(default=None, description="which of a folder's weight files, such as fp16")
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        default=None, description="what a single file of Stable Diffusion 2 predicts"
    )
    loras: tuple[tuple[str, float], ...] = Field(default=(), description="LoRA files, each with its scale")
    mmap: bool = Field(
        default=True,
        description="leave weights in their files, which may be replaced but not written to; false copies them",
    )
    keep: bool = Field(default=False, description="load at the start, and never unload")
    refiner: str | None = Field(
        default=None, description="the model that finishes what this one begins, where a request asks"
    )
    preview: str | None = Field(
        default=None, description="a TAESD file or folder for previews; without it they are coarse"
    )

    @field_validator("name", "aliases")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        for name in (value,) if isinstance(value, str) else value:
            if not _MODEL_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name; expected letters, digits and . _ : / - only")
        return value


class Bounds(StrictModel):
    """How much one request may be. Bytes, pixels, seconds."""

    body: int = Field(default=64 * MIB, gt=0, description="bytes of a request with pictures")
    json_body: int = Field(
        default=1 * MIB, gt=0, description="bytes of a request of text alone, and of all text in one"
    )
    bodies: int = Field(default=256 * MIB, gt=0, description="bytes of all requests that are being received")
    bodies_per_key: int = Field(default=128 * MIB, gt=0, description="bytes of those of one key")
    image: int = Field(default=50 * MIB, gt=0, description="bytes of one picture file")
    mask: int = Field(default=50 * MIB, gt=0, description="bytes of a mask file")
    pixels: int = Field(default=50_000_000, gt=0, description="pixels of a picture that is given")
    upscale_pixels: int = Field(default=4096 * 4096, gt=0, description="pixels of a picture to enlarge")
    output_pixels: int = Field(default=8192 * 8192, gt=0, description="pixels of all results of a request")
    bundled_pixels: int = Field(
        default=50_000_000, gt=0, description="the same for the bundled model, which works in tiles"
    )
    bundled_output_pixels: int = Field(
        default=200_000_000, gt=0, description="pixels of all results of a request to the bundled model"
    )
    form_fields: int = Field(default=30, gt=0, description="text fields of a form")
    prompt: int = Field(default=32_000, gt=0, description="characters of a prompt")
    prompt_tokens: int = Field(default=1500, gt=0, description="tokens of a prompt, and of a negative prompt")
    count: int = Field(default=10, gt=0, description="pictures of one request")
    steps: int = Field(default=150, gt=0, description="denoising steps of one request")
    header_seconds: float = Field(default=10, gt=0, description="for a request's headers to arrive")
    idle_seconds: float = Field(default=15, gt=0, description="between two pieces of a body")
    body_seconds: float = Field(default=120, gt=0, description="for a whole body")
    decode_seconds: float = Field(default=20, gt=0, description="for decoding one picture")
    request_seconds: float = Field(
        default=3600, gt=0, description="that a connection waits for its pictures; then their job is canceled"
    )
    job_seconds: float = Field(default=1800, gt=0, description="for the work on one job; then its worker is ended")
    request_price: float = Field(default=1600, gt=0, description="megapixels of all results x steps of a request")
    key_price: float = Field(default=3200, gt=0, description="the same of all jobs of a key that wait or run")
    total_price: float = Field(default=16000, gt=0, description="the same of all jobs that wait or run")
    per_key: int = Field(default=4, gt=0, description="jobs of one key at a time")
    connections: int = Field(default=1024, gt=0, description="connections at a time")
    requests_per_key: int = Field(default=64, gt=0, description="requests of one key under way at a time")

    def for_kind(self, kind: str | None) -> "Bounds":
        """The bounds of an upscale by a kind of model: the bundled one has its own."""
        if kind != "bundled":
            return self
        own = {"upscale_pixels": self.bundled_pixels, "output_pixels": self.bundled_output_pixels}
        return self.model_copy(update=own)


class Settings(BaseSettings):
    """The whole configuration. Flags win over `ENLARGER_...` variables, these over the file, that over the defaults."""

    model_config = SettingsConfigDict(
        env_prefix="ENLARGER_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8997, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    data: Path = Field(
        default=Path("~/.local/share/enlarger/service"), description="folder of the queue and of results"
    )
    devices: tuple[str, ...] = Field(
        default=("auto",), min_length=1, description="a worker process for each: auto, cpu, cuda:0 ..."
    )
    ray: str | None = Field(
        default=None, description="workers on a Ray cluster instead: local, auto or ray://HOST:PORT"
    )
    workers: str = Field(default="1", description="with ray: how many, 4 or 1..4; idle ones above the first go")
    gpus_per_worker: float = Field(default=0, ge=0, description="with ray: GPUs of each worker")
    models: tuple[ModelSettings, ...] = Field(default=(), description="models beside the bundled one, see below")
    models_folder: Path | None = Field(
        default=None, description="folder of models as web UIs lay it out; all in it can be asked for"
    )
    allow_pickle: bool = Field(default=False, description="read .ckpt, .pt and .pth files too, through an allow-list")
    memory: float | None = Field(
        default=None, gt=0, description="GiB of weights that a worker keeps loaded; none: no bound"
    )
    worker_memory: float | None = Field(
        default=None, gt=0, description="GiB that a worker's process may take; by default 9/10 of the machine's"
    )
    heartbeat_seconds: float = Field(
        default=15, ge=2, description="of silence after which a worker is taken for hung, and ended"
    )
    queue: int = Field(default=16, ge=1, description="jobs that may wait")
    batch: int | None = Field(
        default=None, ge=1, le=16, description="jobs that may run together; by default 4, 1 on a CPU"
    )
    job_minutes: float = Field(default=60, gt=0, description="how long results are kept")
    disk: float = Field(default=2, gt=0, description="GiB that all files of the service may take")
    drain_seconds: float = Field(default=30, ge=0, description="for running jobs to end after SIGTERM")
    wait_seconds: float = Field(
        default=600, gt=0, description="the longest expected wait that a request is admitted with"
    )
    keys: tuple[str, ...] = Field(default=(), description="sha256:... of each key; `enlarger key` makes one")
    operators: tuple[str, ...] = Field(
        default=(), description="those of `keys` that may drain the service and cancel anybody's jobs"
    )
    insecure_no_auth: bool = Field(default=False, description="serve a public address without keys")
    hosts: tuple[str, ...] = Field(default=(), description="further names in Host that requests may come to")
    origins: tuple[str, ...] = Field(default=(), description="web pages of other origins that may use the API")
    fetch: bool = Field(default=False, description="fetch pictures from URLs that requests name")
    fetch_networks: tuple[str, ...] = Field(
        default=(), description="private networks that may be fetched from, as 10.0.0.0/8"
    )
    a1111: bool = Field(default=False, description="serve AUTOMATIC1111's API too, under /sdapi/v1")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least that is logged"
    )
    bounds: Bounds = Field(default=Bounds(), description="how much one request may be, see below")

    @field_validator("data", "models_folder")
    @classmethod
    def _expand_user(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @field_validator("keys")
    @classmethod
    def _check_key_hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_KEY_HASH.fullmatch(key) for key in value):
            raise ValueError("expected sha256: and 64 hexadecimal digits; `enlarger key` makes a key and its hash")
        return value

    @field_validator("fetch_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        names = [name for model in self.known_models for name in (model.name, *model.aliases)]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"several models are called {', '.join(duplicates)}; give each name once")
        for model in self.models:
            if model.refiner is not None and model.refiner not in names:
                raise ValueError(
                    f"the refiner {model.refiner!r} of {model.name} is no model; there are {', '.join(names)}"
                )
        if not set(self.operators) <= set(self.keys):
            raise ValueError("operators holds a hash that keys does not; expected some of keys, put it into both")
        given = self.model_fields_set
        if self.ray is None and given & {"workers", "gpus_per_worker"}:
            raise ValueError("workers and gpus_per_worker say how ray computes; give it too, or leave them")
        if self.ray is not None and "devices" in given:
            raise ValueError("devices has no meaning with ray, which gives each worker its own; leave one of them")
        if not is_loopback(self.host) and not self.keys and not self.insecure_no_auth:
            raise ValueError(
                f"{self.host} can be reached from other machines, and there is no key; make one: `enlarger key`, and "
                "put its line into the file of --config, or let everybody in: --insecure-no-auth"
            )
        return self

    @property
    def known_models(self) -> tuple[ModelSettings, ...]:
        """The models that can be asked for; the bundled one is always there."""
        if any(model.path == "bundled" for model in self.models):
            return self.models
        return (*self.models, ModelSettings(name="bundled", path="bundled"))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        config_path = os.environ.get("ENLARGER_CONFIG")
        toml = () if config_path is None else (TomlConfigSettingsSource(settings_cls, Path(config_path)),)
        return (init_settings, env_settings, *toml)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _problem_text(item: ErrorDetails) -> str:
    """Where a setting is wrong, and what with it."""
    place = "".join(f"{part}." for part in item["loc"])[:-1]
    return f"{place}: {item['msg']}" if place else item["msg"].removeprefix("Value error, ")


def _check_environment(names: Iterable[str]) -> None:
    """Raises InputError for a variable that looks like a setting and is none: a mistyped one would change nothing."""
    known = {f"ENLARGER_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    for name in sorted(names):
        if name.startswith("ENLARGER_") and name.partition("__")[0] not in known:
            nearest = get_close_matches(name, sorted(known), 1)
            expected = f", perhaps {nearest[0]}" if nearest else ""
            raise InputError(
                f"{name} is set, but there is no such setting; expected the name of one{expected}; unset it"
            )


def load_settings(**flags: Any) -> Settings:
    """The settings of flags, environment and file; a flag of None was not given. Raises InputError."""
    _check_environment(os.environ)
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise InputError("; ".join(map(_problem_text, error.errors()))) from error
    except (OSError, ValueError) as error:  # the file
        raise InputError(f"the configuration cannot be read: {error}") from error
