"""Which of the service's models a name of AUTOMATIC1111's API stands for."""

import re
from collections.abc import Mapping
from typing import Any

from enlarger.service.dependencies import Service
from enlarger.service.jobs.job import Task
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.routes.a1111.payloads import unsupported
from enlarger.strict_json import short_repr

NO_UPSCALER = "None"
_HASH = re.compile(r"\s*\[[0-9a-f]{6,64}\]$")  # of a title
_SUFFIX = re.compile(r"\.(safetensors|ckpt|pth|pt)$", re.IGNORECASE)


def plain_name(title: str) -> str:
    """A title or a file's name without hash, ending and folder's kind of slash, in lower case."""
    return _SUFFIX.sub("", _HASH.sub("", title)).replace("\\", "/").casefold()


def checkpoints(service: Service) -> list[ModelState]:
    """The models that make pictures of prompts."""
    return [model for model in service.jobs.models() if set(model.tasks) - {"upscale"}]


def upscalers(service: Service) -> list[ModelState]:
    """The models that enlarge."""
    return [model for model in service.jobs.models() if "upscale" in model.tasks]


def checkpoint_for(service: Service, task: Task, options: Mapping[str, Any]) -> ModelState:
    """The model of the option `sd_model_checkpoint`, else the first that can. Raises ProblemError."""
    title = options.get("sd_model_checkpoint")
    return service.jobs.model_for(task, None if title is None else find_checkpoint(service, str(title)).name)


def find_checkpoint(service: Service, title: str) -> ModelState:
    """The model of a title, a name, or a file's name. Raises ProblemError."""
    return _find(checkpoints(service), title, "sd_model_checkpoint")


def upscaler_for(service: Service, name: str) -> ModelState:
    """The model of an upscaler's name. Raises ProblemError, for None too: it would enlarge nothing."""
    return service.jobs.model_for("upscale", _find(upscalers(service), name, "upscaler_1").name)


def _find(models: list[ModelState], title: str, param: str) -> ModelState:
    for model in models:
        if plain_name(title) in {plain_name(name) for name in (model.name, *model.aliases)}:
            return model
    known = ", ".join(model.name for model in models) or "none"
    raise unsupported(param, f"{param} is {short_repr(title)}, expected one of {known}")
