"""The names of checkpoints: which repository an alias stands for, as configured in aliases.json."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from enlarger.errors import CheckpointError, InputError
from enlarger.jsonfile import read_json

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # owner/repository
USER_FILE = "hub.json"  # in the cache folder: entries that replace or add to those of aliases.json


@dataclass(frozen=True)
class Alias:
    """A checkpoint under a short name, and what is known of it."""

    name: str
    repository: str
    revision: str = "main"
    mirrors: tuple[str, ...] = ()  # other repositories with the same files
    variants: tuple[str, ...] = ()  # beside the plain one
    licence: str = ""
    out_of_scope: str = ""  # where the model card tells what the model is not for
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])  # of weight files that are known


@dataclass(frozen=True)
class Source:
    """What to pull: a repository at a revision, and the alias that it belongs to, if any."""

    name: str  # as the user gave it
    repository: str
    revision: str = "main"
    alias: Alias | None = None

    @property
    def repositories(self) -> tuple[str, ...]:
        """All that hold the same files; a repository that was named stands for itself alone."""
        if self.alias is None or self.name != self.alias.name:
            return (self.repository,)
        return (self.repository, *self.alias.mirrors)


@dataclass(frozen=True)
class Book:
    """The configuration: where the hub is, which hosts it may send us to, what is gone, and the aliases."""

    endpoint: str
    hosts: tuple[str, ...]
    gone: Mapping[str, str]
    aliases: Mapping[str, Alias]

    def find(self, name: str) -> Source:
        """What a name stands for. Raises InputError with the nearest names if it is none."""
        alias = self.aliases.get(name)
        if alias is not None:
            return Source(name, alias.repository, alias.revision, alias)
        if REPOSITORY.fullmatch(name) and ".." not in name:
            return Source(name, name, alias=self.owner(name))
        near = get_close_matches(name.lower(), self.aliases, n=3, cutoff=0.5)
        known = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(self.aliases)}"
        raise InputError(f"no checkpoint is called {name!r}; {known}; or give owner/repository")

    def owner(self, repository: str) -> Alias | None:
        """The alias that a repository belongs to."""
        return next((a for a in self.aliases.values() if repository in (a.repository, *a.mirrors)), None)

    def instead(self, repository: str) -> str | None:
        """A repository with the same files that is not known to be gone."""
        alias = self.owner(repository)
        others = () if alias is None else (alias.repository, *alias.mirrors)
        return next((other for other in others if other != repository and other not in self.gone), None)


def read_book(home: Path) -> Book:
    """aliases.json of the package, with the entries of `hub.json` in the cache folder over it."""
    found = read_json(Path(__file__).with_name("aliases.json"))
    own = read_json(home / USER_FILE) if (home / USER_FILE).is_file() else {}
    try:
        aliases = {**found["aliases"], **own.get("aliases", {})}
        return Book(
            endpoint=str(own.get("endpoint", found["endpoint"])),
            hosts=(*map(str, found["hosts"]), *map(str, own.get("hosts", ()))),
            gone={**found["gone"], **own.get("gone", {})},
            aliases={name: _alias(name, entry) for name, entry in aliases.items()},
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{home / USER_FILE}: {error!r}; expected aliases, hosts, gone and endpoint as in aliases.json."
        ) from error


def _alias(name: str, entry: Mapping[str, Any]) -> Alias:
    lists = {key: tuple(map(str, value)) for key, value in entry.items() if key in ("mirrors", "variants")}
    rest = {key: value for key, value in entry.items() if key not in lists}
    return Alias(name, **lists, **rest)
