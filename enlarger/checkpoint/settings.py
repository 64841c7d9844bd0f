"""Reading one JSON config strictly: every setting is used, known to be without effect, or refused by name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from enlarger.errors import CheckpointError, Unsupported
from enlarger.jsonfile import Json, shown, shown_name

__all__ = ["Json", "Settings"]
LARGEST = 1 << 20  # of a width or count; no network that anyone has comes near
MOST_LAYERS = 100  # of one kind: layers are made one by one, before a file says whether they exist
MOST_LISTED = 100
LARGEST_REAL = 1e30  # a float32 holds it


@dataclass(frozen=True)
class Settings:
    """A config being read; it remembers which settings have been looked at."""

    what: str  # the class, for messages
    config: Mapping[str, Any]
    seen: set[str] = field(default_factory=set[str])

    def get(self, name: str, default: Any = None) -> Any:
        """The value, `default` where the file is silent or says null."""
        self.seen.add(name)
        found = self.config.get(name)
        return default if found is None else found

    def number(self, name: str, default: int | None = None) -> int:
        found = self.get(name, default)
        if type(found) is not int or not 0 <= found <= self._most(name):
            raise CheckpointError(
                f"{self.what}: {name} is {shown(found)}, expected a whole number of at most {self._most(name):,}."
            )
        return found

    @staticmethod
    def _most(name: str) -> int:
        return MOST_LAYERS if "layers" in name else LARGEST

    def optional(self, name: str) -> int | None:
        return None if self.get(name) is None else self.number(name)

    def real(self, name: str, default: float) -> float:
        found = self.get(name, default)
        if not _is_real(found):
            raise CheckpointError(f"{self.what}: {name} is {shown(found)}, expected a number.")
        return float(found)

    def reals(self, name: str) -> tuple[float, ...] | None:
        found: Any = self.get(name)
        if found is None:
            return None
        if not isinstance(found, list) or not all(map(_is_real, cast("list[Any]", found))):
            raise CheckpointError(f"{self.what}: {name} is {shown(found)}, expected a list of numbers.")
        return tuple(map(float, cast("list[Any]", found)))

    def flag(self, name: str) -> bool:
        return bool(self.get(name, False))

    def numbers(self, name: str) -> tuple[int, ...]:
        found = self._list(name)
        if not found or any(type(each) is not int or not 1 <= each <= self._most(name) for each in found):
            raise CheckpointError(f"{self.what}: {name} is {shown(found)}, expected a list of whole numbers.")
        return tuple(found)

    def names(self, name: str, count: int) -> tuple[str, ...]:
        found = self._list(name)
        if len(found) != count:
            raise CheckpointError(f"{self.what}: {name} lists {len(found)} blocks, expected {count}, one per level.")
        if any(type(each) is not str for each in found):
            raise CheckpointError(f"{self.what}: {name} is {shown(found)}, expected a list of names.")
        return tuple(found)

    def per_level(self, name: str, count: int, default: Any) -> tuple[Any, ...]:
        """One value per level; files give either a list or one value for all."""
        found: Any = self.get(name, default)
        values = tuple(cast("list[Any]", found)) if isinstance(found, list) else (found,) * count
        if len(values) != count or any(type(each) is not type(default) for each in values):
            raise CheckpointError(f"{self.what}: {name} is {shown(found)}, expected one value or {count}.")
        return values

    def _list(self, name: str) -> list[Any]:
        found: Any = self.get(name, [])
        if not isinstance(found, list) or len(cast("list[Any]", found)) > MOST_LISTED:
            raise CheckpointError(f"{self.what}: {name} is {shown(found)}, expected a list.")
        return cast("list[Any]", found)

    def choice(self, name: str, *allowed: Any) -> Any:
        """A value out of those allowed; the first is the default."""
        found = self.get(name, allowed[0])
        if found not in allowed:
            raise Unsupported(f"{self.what}: {name} is {shown(found)}; supported: {', '.join(map(repr, allowed))}.")
        return found

    def only(self, name: str, found: Collection[str], allowed: Collection[str]) -> None:
        odd = [each for each in found if each not in allowed]
        if odd:
            raise Unsupported(f"{self.what}: {name} has {shown(odd[0])}; supported: {', '.join(map(repr, allowed))}.")

    def same(self, fixed: Mapping[str, Any]) -> "Settings":
        """Refuse a stated value that differs from the one that our network has."""
        for name, value in fixed.items():
            found = self.get(name, value)
            if found != value and (found or value):  # null, false and 0 all say "without"
                raise Unsupported(f"{self.what}: {name} is {shown(found)}; supported: {value!r}.")
        return self

    def ignore(self, *names: str) -> "Settings":
        self.seen.update(names)
        return self

    def finish(self) -> None:
        """Refuse settings that nobody asked for, unless they say "without"."""
        odd = [n for n, value in self.config.items() if n not in self.seen and not n.startswith("_") and value]
        if odd:
            raise Unsupported(
                f"{self.what}: unknown settings {', '.join(map(shown_name, odd[:10]))}; "
                "this network may differ from ours."
            )


def _is_real(found: Any) -> bool:
    return type(found) in (int, float) and abs(found) <= LARGEST_REAL  # neither infinity nor NaN
