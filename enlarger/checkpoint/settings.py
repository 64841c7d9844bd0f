"""Reading one JSON config strictly: every setting is used, known to be without effect, or refused by name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from enlarger.errors import CheckpointError, Unsupported

Json = dict[str, Any]


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
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise CheckpointError(f"{self.what}: {name} is {found!r}, expected a whole number.")
        return found

    def optional(self, name: str) -> int | None:
        return None if self.get(name) is None else self.number(name)

    def real(self, name: str, default: float) -> float:
        found = self.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise CheckpointError(f"{self.what}: {name} is {found!r}, expected a number.")
        return float(found)

    def reals(self, name: str) -> tuple[float, ...] | None:
        found: Any = self.get(name)
        if found is None:
            return None
        if not isinstance(found, list) or any(type(each) not in (int, float) for each in cast("list[Any]", found)):
            raise CheckpointError(f"{self.what}: {name} is {found!r}, expected a list of numbers.")
        return tuple(map(float, cast("list[Any]", found)))

    def flag(self, name: str) -> bool:
        return bool(self.get(name, False))

    def numbers(self, name: str) -> tuple[int, ...]:
        found = self._list(name)
        if not found or any(type(each) is not int or each < 1 for each in found):
            raise CheckpointError(f"{self.what}: {name} is {found!r}, expected a list of whole numbers.")
        return tuple(found)

    def names(self, name: str, count: int) -> tuple[str, ...]:
        found = self._list(name)
        if len(found) != count:
            raise CheckpointError(f"{self.what}: {name} lists {len(found)} blocks, expected {count}, one per level.")
        return tuple(str(each) for each in found)

    def per_level(self, name: str, count: int, default: Any) -> tuple[Any, ...]:
        """One value per level; files give either a list or one value for all."""
        found: Any = self.get(name, default)
        values = tuple(cast("list[Any]", found)) if isinstance(found, list) else (found,) * count
        if len(values) != count or any(type(each) is not type(default) for each in values):
            raise CheckpointError(f"{self.what}: {name} is {found!r}, expected one value or {count}.")
        return values

    def _list(self, name: str) -> list[Any]:
        found: Any = self.get(name, [])
        if not isinstance(found, list):
            raise CheckpointError(f"{self.what}: {name} is {found!r}, expected a list.")
        return cast("list[Any]", found)

    def choice(self, name: str, *allowed: Any) -> Any:
        """A value out of those allowed; the first is the default."""
        found = self.get(name, allowed[0])
        if found not in allowed:
            raise Unsupported(f"{self.what}: {name} is {found!r}; supported: {', '.join(map(repr, allowed))}.")
        return found

    def only(self, name: str, found: Collection[str], allowed: Collection[str]) -> None:
        odd = [each for each in found if each not in allowed]
        if odd:
            raise Unsupported(f"{self.what}: {name} has {odd[0]!r}; supported: {', '.join(map(repr, allowed))}.")

    def same(self, fixed: Mapping[str, Any]) -> "Settings":
        """Refuse a stated value that differs from the one that our network has."""
        for name, value in fixed.items():
            found = self.get(name, value)
            if found != value and (found or value):  # null, false and 0 all say "without"
                raise Unsupported(f"{self.what}: {name} is {found!r}; supported: {value!r}.")
        return self

    def ignore(self, *names: str) -> "Settings":
        self.seen.update(names)
        return self

    def finish(self) -> None:
        """Refuse settings that nobody asked for, unless they say "without"."""
        odd = [n for n, value in self.config.items() if n not in self.seen and not n.startswith("_") and value]
        if odd:
            raise Unsupported(
                f"{self.what}: unknown settings {', '.join(odd[:10])}; this network may differ from ours."
            )
