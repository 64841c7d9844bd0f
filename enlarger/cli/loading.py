"""How a run loads its model, as the pictures that it makes say it, and the way back from that."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

    def _texts(self) -> dict[str, str | None]:
        values = {name: getattr(self, name) for name in DEFAULTS}
        return values | {
            name: None if path is None else str(path)
            for name, path in (("refiner", self.refiner), ("upscaler", self.upscaler))
        }


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
