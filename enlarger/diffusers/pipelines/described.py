"""What a pipeline says of itself: its parts' classes and its settings, as model_index.json holds them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from enlarger.checkpoint.components import COMPONENT_CLASSES, MODEL_INDEX_NAME
from enlarger.diffusers.models.foreign import is_foreign
from enlarger.diffusers.schedulers.config import ConfigMethods, SchedulerConfig
from enlarger.errors import Unsupported
from enlarger.strict_json import Json


class DescribedParts(ConfigMethods):
    """For the pipelines to inherit."""

    config_name = MODEL_INDEX_NAME
    COMPONENT_TYPES: ClassVar[Mapping[str, type[object]]] = {}
    CONFIG_KEYS: ClassVar[tuple[str, ...]] = ()  # arguments that are not parts; model_index.json keeps them
    _settings: Json
    _foreign: dict[str, Any]
    _source: tuple[Path, Mapping[str, object]] | None

    @property
    def config(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride] - made anew each time
        """What model_index.json holds, by name or attribute: the parts' libraries and classes, and the settings."""
        parts = {name: self._stated_class(name) for name in self.COMPONENT_TYPES}
        place = {} if self._source is None else {"_name_or_path": str(self._source[0])}
        return SchedulerConfig(type(self).__name__, {**parts, **self._settings, **place}, {}, has_name=False)

    def _stated_class(self, name: str) -> tuple[str | None, str | None]:
        """Library and class of a part, as model_index.json names them."""
        part = self._foreign.get(name, getattr(self, name))
        class_name = type(getattr(part, "_orig_mod", part)).__name__
        stated: Any = None if self._source is None else self._source[1].get(name)
        if part is None:
            return None, None
        if is_foreign(part):
            return type(part).__module__.split(".")[0], class_name
        if class_name in COMPONENT_CLASSES:
            return COMPONENT_CLASSES[class_name].library, class_name
        if name.startswith("tokenizer"):
            return "transformers", class_name
        return tuple(stated) if stated and name != "scheduler" else ("diffusers", class_name)

    @property
    def name_or_path(self) -> str | None:
        """The folder or file that was read."""
        return self.config.get("_name_or_path")

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings that are not parts: `Other(**pipe.components, **pipe.parameters)`."""
        return dict(self._settings)

    @property
    def hf_device_map(self) -> None:
        """There is no map: a pipeline is on one device."""

    def register_modules(self, **parts: object) -> None:
        """Set parts by name."""
        for name, part in parts.items():
            setattr(self, name, part)

    def register_to_config(self, **settings: object) -> None:
        """Change what model_index.json keeps beside the parts."""
        if unknown := sorted(set(settings) - {*self._settings, *self.CONFIG_KEYS}):
            raise Unsupported(f"the config has no {', '.join(unknown)}; it has {', '.join(self.CONFIG_KEYS)}")
        self._settings.update(settings)
