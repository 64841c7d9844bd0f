"""A pipeline's folder: what is written, what is copied from where it was read, and what writes itself."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from enlarger.checkpoint.components import MODEL_INDEX_NAME, PipelineComponents
from enlarger.checkpoint.folder.save import save_folder
from enlarger.diffusers.models.model_methods import STATED
from enlarger.diffusers.models.modules import ModelView
from enlarger.diffusers.schedulers import Scheduler
from enlarger.strict_json import Json, read_json
from enlarger.text.tokenize import Tokenizer


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder is made of: the parts by name, None where there is none, and the pipeline's settings.

    `foreign` are parts that write themselves; `source` is the folder that was read, and its index.
    """

    class_name: str
    parts: Mapping[str, Any]
    foreign: Mapping[str, Any]
    settings: Json
    source: tuple[Path, Mapping[str, object]] | None

    def write(self, folder: Path, variant: str | None, max_shard_bytes: int) -> None:
        """Write the folder; in an existing one files of the same names are written over."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            made = Path(place) / "model"
            save_folder(self._bundle(folder), made, max_shard_bytes=max_shard_bytes, variant=variant)
            _save_foreign(self.foreign, made, variant)
            shutil.copytree(made, folder, dirs_exist_ok=True)

    def _bundle(self, folder: Path) -> PipelineComponents:
        plain = {name: getattr(part, "_orig_mod", part) for name, part in self.parts.items() if part is not None}
        natives = {name: getattr(part, "native", part) for name, part in plain.items() if name not in self.foreign}
        written = {
            name: part.to_dict() if isinstance(part, Scheduler) else part
            for name, part in natives.items()
            if isinstance(part, nn.Module | Tokenizer | Scheduler)
        }
        nowhere: tuple[Path, Mapping[str, object]] = (folder, {})
        path, stated = nowhere if self.source is None else self.source
        copied = [name for name in natives if name not in written]  # networks of other packages
        copied += ["feature_extractor"] if copied and "feature_extractor" not in self.foreign else []
        if missing := [name for name in copied if name not in stated]:
            warnings.warn(f"{', '.join(missing)} cannot be saved: only what lies in a folder is copied", stacklevel=5)
        index: Json = {"_class_name": self.class_name, **{name: [None, None] for name in self.parts}, **self.settings}
        if "safety_checker" in self.parts:
            index.setdefault("requires_safety_checker", False)
        index |= {name: stated[name] for name in copied if name in stated}
        configs = {name: part.__dict__.get(STATED, {}) for name, part in plain.items() if isinstance(part, ModelView)}
        return PipelineComponents(path, index, written, configs, tuple(copied))


def _save_foreign(parts: Mapping[str, Any], folder: Path, variant: str | None) -> None:
    """Have parts of theirs write themselves, and name them in the folder's index."""
    index = read_json(folder / MODEL_INDEX_NAME)
    for name, part in parts.items():
        write: Any = part.save_pretrained
        write(folder / name, **({"variant": variant} if isinstance(part, nn.Module) else {}))
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    (folder / MODEL_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
