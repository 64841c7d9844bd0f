"""Settings as they were stated and by default, and as JSON files, as diffusers' ConfigMixin has them."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

from enlarger.diffusers.call.arguments import MissingFile
from enlarger.diffusers.unsupported import refuse
from enlarger.strict_json import Json, read_json

VERSION = "0.42.1"  # of diffusers, whose files these are


class SchedulerConfig(dict[str, Any]):
    """Settings by name or attribute: those stated, then the class's defaults. Those not stated are not carried over.

    A dictionary that cannot be changed.
    """

    def __init__(
        self, class_name: str, explicit: Mapping[str, object], defaults: Mapping[str, object], *, has_name: bool = True
    ) -> None:
        """`has_name` states the class among the settings; errors name it in any case."""
        self.class_name = class_name
        self._explicit, self._defaults = dict(explicit), dict(defaults)
        unstated = [name for name in defaults if name not in explicit]
        told: Json = {**defaults, **explicit, **({"_class_name": class_name} if has_name else {})}
        super().__init__(told | ({"_use_default_values": unstated} if unstated else {}))

    @property
    def explicit(self) -> Mapping[str, object]:
        """What was stated, read-only."""
        return MappingProxyType(self._explicit)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self:
            kind = self.__dict__.get("class_name")
            raise AttributeError(f"the config of {kind} has no {name!r}; it has {', '.join(self)}")
        return self[name]

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("a config cannot be changed; use register_to_config, or from_config with the change")

    __setitem__ = __delitem__ = pop = popitem = clear = __ior__ = _refuse
    setdefault = update = _refuse  # pyright: ignore[reportAssignmentType] - whatever they are given

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.class_name, self._explicit, self._defaults)

    def copy(self) -> dict[str, Any]:
        """A dictionary of all, which can be changed."""
        return dict(self)

    def __repr__(self) -> str:
        return f"{self.class_name}({dict(self.explicit)})"


def stated_in(config: Mapping[str, object]) -> dict[str, object]:
    """A file's or a diffusers config's settings without those that its class filled in."""
    if isinstance(config, SchedulerConfig):
        return dict(config.explicit)
    filled_in = config.get("_use_default_values")
    unstated = [name for name in config if isinstance(filled_in, Collection) and name in filled_in]
    return {name: value for name, value in config.items() if name not in unstated and not name.startswith("_")}


class ConfigMethods:
    """For pipelines, models and schedulers to inherit; `config_name` is the file in a folder."""

    config_name: ClassVar[str | None] = None
    has_compatibles: ClassVar[bool] = False
    ignore_for_config: ClassVar[tuple[str, ...]] = ()
    config: Any

    @classmethod
    def load_config(
        cls, pretrained_model_name_or_path: str | Path, return_unused_kwargs: bool = False,
        return_commit_hash: bool = False, subfolder: str | None = None, **unused: object,
    ) -> Any:  # fmt: skip
        """What the config file of a local folder, or a file, holds; `unused` comes back with it where asked for."""
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        file = folder if folder.is_file() else folder / str(cls.config_name)
        if not file.is_file():
            raise MissingFile(f"{folder}: no {cls.config_name}, and nothing is downloaded here; give a local folder")
        more = ([unused] if return_unused_kwargs else []) + ([None] if return_commit_hash else [])
        return (dict(read_json(file)), *more) if more else dict(read_json(file))

    def to_json_string(self) -> str:
        """The config as its file holds it: the defaults too, without the names of those."""
        config: SchedulerConfig = self.config
        settings: Json = {name: value for name, value in config.items() if name != "_use_default_values"}
        settings = {"_class_name": type(self).__name__, **settings, "_diffusers_version": VERSION}
        return json.dumps(settings, indent=2, sort_keys=True, default=list) + "\n"

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the config to a file."""
        Path(json_file_path).write_text(self.to_json_string(), "utf-8")

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **_: object) -> None:
        """Write the config's file into a folder."""
        if push_to_hub:
            refuse("push_to_hub", "push_to_hub")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / str(self.config_name))
