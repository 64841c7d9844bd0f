"""The folder of models as a worker serves it: its models by name, and what requests can add to them."""

import re
from collections.abc import Sequence
from pathlib import Path

from enlarger.checkpoint.model_folder import LORA, MODEL, ModelFolder, read_model_folder
from enlarger.service.jobs.model_registry import AdapterNames
from enlarger.service.settings import ModelSettings

MAX_NAME = 120  # characters
_NO_NAME = re.compile(r"[^A-Za-z0-9._/-]+")


def open_model_folder(path: Path | None, allow_pickle: bool) -> ModelFolder:
    """The folder of the settings; one with nothing in it where they name none."""
    return (
        ModelFolder(Path(), allow_pickle=allow_pickle)
        if path is None
        else read_model_folder(path, allow_pickle=allow_pickle)
    )


def models_of_folder(folder: ModelFolder, taken: Sequence[str]) -> tuple[ModelSettings, ...]:
    """Each model of the folder that can be used, under a name that no other has and that an address can hold."""
    names, found = set(taken), list[ModelSettings]()
    for file in folder.files:
        if file.role != MODEL:
            continue
        plain = _NO_NAME.sub("-", file.name).strip("-._/")[:MAX_NAME] or "model"
        name, number = plain, 2
        while name in names:
            name, number = f"{plain}-{number}", number + 1
        names.add(name)
        found.append(ModelSettings(name=name, path=str(file.path)))
    return tuple(found)


def adapter_names(folder: ModelFolder) -> AdapterNames:
    """The LoRAs and styles that requests can name."""
    loras = tuple(file.name for file in folder.files if file.role == LORA)
    return AdapterNames(loras, {name: (style.prompt, style.negative) for name, style in folder.styles.items()})
