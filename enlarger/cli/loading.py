"""How a run loads its model, as the pictures that it makes say it, and the way back from that."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enlarger.errors import CheckpointError
from enlarger.requests import UpscaleRequest
from enlarger.strict_json import Json

if TYPE_CHECKING:
    from enlarger.checkpoint.model_folder import ModelFolder
    from enlarger.tasks.loading.load import Checkpoint, Location

DEFAULTS = {"device": "auto", "precision": "auto", "offload": "none", "engine": "torch"}


@dataclass(frozen=True)
class Loading:
    """What a verb's options say of its models."""

    model: "Location | None" = None
    device: str = "auto"
    precision: str = "auto"
    offload: str = "none"
    refiner: "Location | None" = None
    upscaler: "Location | None" = None
    engine: str = "torch"

    def describe(self) -> Json:
        """What was asked for beside the model's name. Leave to open pickles is not told: only a user gives it."""
        said = {name: value for name, value in self._texts().items() if value not in (None, DEFAULTS.get(name))}
        checkpoint = {} if self.model is None or isinstance(self.model, str | Path) else _describe(self.model)
        return said | ({"checkpoint": checkpoint} if checkpoint else {})

    def paths(self) -> list[Path]:
        """The files and folders of its models. Raises CheckpointError for one that is not there."""
        from enlarger.hub.cache import resolve

        found: list[Path] = []
        for location in (self.model, self.refiner, self.upscaler):
            if isinstance(location, str | Path):
                found.append(resolve(location))
            elif location is not None:
                from enlarger.checkpoint.model_folder import checkpoint_path  # torch, which the checkpoint has brought

                found.append(resolve(checkpoint_path(location.models, location.path)))
        return found

    def identity(self, request: object) -> Json:
        """What of it makes results differ beside the model's name: the numbers, and the state of all that is read."""
        try:
            paths = self.paths()
        except CheckpointError:
            paths = []  # it is said where the model is loaded
        if not (self.model is None or isinstance(self.model, str | Path)):
            paths += _beside(self.model, request)
        return {
            "precision": self.precision,
            "engine": self.engine,
            "files": [_state(path) for path in paths],
        }

    def _texts(self) -> dict[str, str | None]:
        values = {name: getattr(self, name) for name in DEFAULTS}
        return values | {
            name: None if path is None else str(path)
            for name, path in (("refiner", self.refiner), ("upscaler", self.upscaler))
        }


def _beside(checkpoint: "Checkpoint", request: object) -> list[Path]:
    """The files that are read beside a checkpoint: those it names, and LoRAs of its folder that a request names."""
    files = [path for path, _ in checkpoint.loras]
    files += [each[0] if isinstance(each, tuple) else each for each in checkpoint.inversions]
    files += [checkpoint.vae] if isinstance(checkpoint.vae, str | Path) else []
    paths = [Path(file).expanduser() for file in files]
    if (folder := checkpoint.models) is None:
        return paths
    named = [str(file) for file in files] + [
        str(getattr(request, name, "")) for name in ("prompt", "negative", "loras")
    ]
    named += [str(style) for name, style in folder.styles.items() if name in getattr(request, "styles", ())]
    paths += [file.path for file in folder.files if any(file.name in text for text in named)]
    return paths if folder.styles_file is None else [*paths, folder.styles_file]


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of each in a folder."""
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = ((str(each.relative_to(root)), each.stat()) for each in files if each.is_file())
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _describe(checkpoint: "Checkpoint") -> Json:
    inversions = [
        [str(one) for one in each] if isinstance(each, tuple) else str(each) for each in checkpoint.inversions
    ]
    values = {
        "variant": checkpoint.variant,
        "prediction": checkpoint.prediction,
        "vae": None if checkpoint.vae is None else str(checkpoint.vae),
        "loras": [[str(path), scale] for path, scale in checkpoint.loras],
        "inversions": inversions,
    }
    if (folder := checkpoint.models) is not None:
        values["models"] = None if folder.path == folder.styles_file else str(folder.path)
        values["styles"] = None if folder.styles_file is None else str(folder.styles_file)
    return {name: value for name, value in values.items() if value not in (None, [])}


def checkpoint_of(name: str, loading: Json, *, allow_pickle: bool) -> "Location":
    """The checkpoint of that name, with what `Loading.describe` said of it."""
    from enlarger.tasks.loading.load import Checkpoint  # torch comes with it

    said: Json = loading.get("checkpoint", {})
    if not said and (not allow_pickle or Path(name).is_dir()):
        return name
    models, styles = (None if said.get(key) is None else Path(said[key]) for key in ("models", "styles"))
    return Checkpoint(
        name,
        variant=said.get("variant"),
        prediction=said.get("prediction"),
        vae=said.get("vae"),
        allow_pickle=allow_pickle,
        loras=[(str(path), float(scale)) for path, scale in said.get("loras", ())],
        inversions=[one if isinstance(one, str) else (str(one[0]), str(one[1])) for one in said.get("inversions", ())],
        models=read_folder(models, styles, allow_pickle=allow_pickle),
    )


def read_folder(models: Path | None, styles: Path | None, *, allow_pickle: bool) -> "ModelFolder | None":
    """The folder of models and the file of styles that a verb names; either can be alone."""
    from enlarger.checkpoint.model_folder import ModelFolder, read_model_folder
    from enlarger.text.styles import read_styles  # torch comes with it

    if models is not None:
        return read_model_folder(models, allow_pickle=allow_pickle, styles=styles)
    return None if styles is None else ModelFolder(styles, styles=read_styles(styles), styles_file=styles)


def file_of(path: str | Path | None, *, allow_pickle: bool) -> "Location | None":
    """A model beside `--model`, whose file may be a pickle where the user allows it."""
    from enlarger.tasks.loading.load import Checkpoint  # torch comes with it

    if path is None:
        return None
    is_file = allow_pickle and Path(path).expanduser().is_file()
    return Checkpoint(path, allow_pickle=True) if is_file else str(path)


def check_options(task: object, request: object) -> None:
    """Raise Unsupported for options that a loaded upscaler has no use for, for whatever picture."""
    kind = getattr(task, "kind", None)  # of a service's only the service knows
    if kind is not None and isinstance(request, UpscaleRequest):
        from enlarger.tasks.upscale.upscale import refuse_unused_options  # torch, which the task has brought

        refuse_unused_options(kind, request)
