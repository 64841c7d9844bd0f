"""The settings of a scheduler: those that were stated, then its class's defaults."""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from enlarger.strict_json import Json

VERSION = "0.42.1"  # of diffusers, whose files these are


class SchedulerConfig(Mapping[str, Any]):
    """Settings by name or attribute: those stated, then the class's defaults. Those not stated are not carried over."""

    def __init__(self, class_name: str, explicit: Mapping[str, object], defaults: Mapping[str, object]) -> None:
        self.class_name = class_name
        self._explicit = dict(explicit)
        unstated = [name for name in defaults if name not in explicit]
        self._all: Json = {**defaults, **explicit, **({"_class_name": class_name} if class_name else {})}
        if unstated:
            self._all["_use_default_values"] = unstated

    @property
    def explicit(self) -> Mapping[str, object]:
        """What was stated, read-only."""
        return MappingProxyType(self._explicit)

    def __getitem__(self, name: str) -> Any:
        return self._all[name]

    def __getattr__(self, name: str) -> Any:
        stored: Json = self.__dict__.get("_all", {})  # not there yet while a copy is made
        if name.startswith("__") or name not in stored:
            kind = self.__dict__.get("class_name")
            raise AttributeError(f"the config of {kind} has no {name!r}; it has {', '.join(stored)}")
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def copy(self) -> dict[str, Any]:
        """A dictionary of all."""
        return dict(self._all)

    def __repr__(self) -> str:
        return f"{self.class_name}({dict(self.explicit)})"


def stated_in(config: Mapping[str, object]) -> dict[str, object]:
    """A file's or a diffusers config's settings without those that its class filled in."""
    if isinstance(config, SchedulerConfig):
        return dict(config.explicit)
    filled_in = config.get("_use_default_values")
    unstated = [name for name in config if isinstance(filled_in, Collection) and name in filled_in]
    return {name: value for name, value in config.items() if name not in unstated and not name.startswith("_")}
