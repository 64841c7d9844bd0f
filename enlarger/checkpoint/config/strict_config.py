"""Reading one JSON config strictly: every setting is used, known to be without effect, or refused by name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from enlarger.errors import CheckpointError, Unsupported, list_names
from enlarger.strict_json import Json, is_array, printable_name, short_repr

MAX_INT = 1 << 20  # of a width or count; no network that anyone has comes near
MAX_LAYERS = 100  # of one kind: layers are made one by one, before a file says whether they exist
MAX_LIST_LENGTH = 100
MAX_FLOAT = 1e30  # a float32 holds it


@dataclass(frozen=True)
class StrictConfig:
    """A config being read; it remembers which settings have been looked at."""

    class_name: str  # the class, for messages
    config: Json
    used_keys: set[str] = field(default_factory=set[str])

    def get(self, name: str, default: Any = None) -> Any:
        """The value, `default` where the file is silent or says null."""
        self.used_keys.add(name)
        value = self.config.get(name)
        return default if value is None else value

    def get_int(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if type(value) is not int or not 0 <= value <= self._max_int(name):
            raise CheckpointError(
                f"{self.class_name}: {name} is {short_repr(value)}, expected a whole number of at most "
                f"{self._max_int(name):,}."
            )
        return value

    @staticmethod
    def _max_int(name: str) -> int:
        return MAX_LAYERS if "layers" in name else MAX_INT

    def get_optional_int(self, name: str) -> int | None:
        return None if self.get(name) is None else self.get_int(name)

    def get_float(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if not _is_finite_number(value):
            raise CheckpointError(f"{self.class_name}: {name} is {short_repr(value)}, expected a number.")
        return float(value)

    def get_floats(self, name: str) -> tuple[float, ...] | None:
        value = self.get(name)
        if value is None:
            return None
        if not is_array(value) or not _are_finite_numbers(value):
            raise CheckpointError(f"{self.class_name}: {name} is {short_repr(value)}, expected a list of numbers.")
        return tuple(map(float, value))

    def get_bool(self, name: str) -> bool:
        return bool(self.get(name, False))

    def get_ints(self, name: str) -> tuple[int, ...]:
        values = self._get_list(name)
        if not values or any(type(each) is not int or not 1 <= each <= self._max_int(name) for each in values):
            raise CheckpointError(
                f"{self.class_name}: {name} is {short_repr(values)}, expected a list of whole numbers."
            )
        return tuple(values)

    def get_strings(self, name: str, count: int) -> tuple[str, ...]:
        values = self._get_list(name)
        if len(values) != count:
            raise CheckpointError(
                f"{self.class_name}: {name} lists {len(values)} blocks, expected {count}, one per level."
            )
        if any(type(each) is not str for each in values):
            raise CheckpointError(f"{self.class_name}: {name} is {short_repr(values)}, expected a list of names.")
        return tuple(values)

    def get_per_level(self, name: str, count: int, default: Any) -> tuple[Any, ...]:
        """One value per level; files give either a list or one value for all."""
        value = self.get(name, default)
        values = tuple(value) if is_array(value) else (value,) * count
        if len(values) != count or any(type(each) is not type(default) for each in values):
            raise CheckpointError(f"{self.class_name}: {name} is {short_repr(value)}, expected one value or {count}.")
        return values

    def _get_list(self, name: str) -> list[Any]:
        value = self.get(name, [])
        if not is_array(value) or len(value) > MAX_LIST_LENGTH:
            raise CheckpointError(f"{self.class_name}: {name} is {short_repr(value)}, expected a list.")
        return value

    def get_choice(self, name: str, *allowed: Any) -> Any:
        """A value out of those allowed; the first is the default."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise Unsupported(
                f"{self.class_name}: {name} is {short_repr(value)}; supported: {', '.join(map(repr, allowed))}."
            )
        return value

    def require_allowed(self, name: str, values: Collection[str], allowed: Collection[str]) -> None:
        unsupported = [each for each in values if each not in allowed]
        if unsupported:
            raise Unsupported(
                f"{self.class_name}: {name} has {short_repr(unsupported[0])}; supported: "
                f"{', '.join(map(repr, allowed))}."
            )

    def require_equal(self, fixed: Mapping[str, Any]) -> "StrictConfig":
        """Refuse a stated value that differs from the one that our network has."""
        for name, value in fixed.items():
            stated = self.get(name, value)
            if stated != value and (stated or value):  # null, false and 0 all say "without"
                raise Unsupported(f"{self.class_name}: {name} is {short_repr(stated)}; supported: {value!r}.")
        return self

    def ignore_keys(self, *names: str) -> "StrictConfig":
        self.used_keys.update(names)
        return self

    def reject_unknown(self) -> None:
        """Refuse settings that were never read, unless they say "without"."""
        unknown = [n for n, value in self.config.items() if n not in self.used_keys and not n.startswith("_") and value]
        if unknown:
            raise Unsupported(
                f"{self.class_name}: unknown settings {list_names([printable_name(name) for name in unknown])}; "
                "this network may differ from ours."
            )


def _are_finite_numbers(values: list[object]) -> TypeGuard[list[float]]:
    return all(map(_is_finite_number, values))


def _is_finite_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) <= MAX_FLOAT  # neither infinity nor NaN
