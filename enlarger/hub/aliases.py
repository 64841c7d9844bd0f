"""The names of checkpoints: which repository an alias stands for, as configured in aliases.json."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from enlarger.errors import CheckpointError, InputError
from enlarger.strict_json import Json, read_json

REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # owner/repository
USER_ALIASES_FILE = "hub.json"  # in the cache folder: entries that replace or add to those of aliases.json


@dataclass(frozen=True)
class Alias:
    """A checkpoint under a short name, and what is known of it."""

    name: str
    repository: str
    revision: str = "main"
    mirrors: tuple[str, ...] = ()  # other repositories with the same files
    variants: tuple[str, ...] = ()  # beside the plain one
    licence: str = ""
    out_of_scope: str = ""  # where the model card says what the model is not for
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])  # of weight files that are known


@dataclass(frozen=True)
class RepoSource:
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
class AliasTable:
    """The configuration: where the hub is, which hosts it may send us to, what is gone, and the aliases."""

    endpoint: str
    allowed_hosts: tuple[str, ...]
    unavailable: Mapping[str, str]
    aliases: Mapping[str, Alias]

    def lookup(self, name: str) -> RepoSource:
        """What a name stands for. Raises InputError with the nearest names if it is none."""
        alias = self.aliases.get(name)
        if alias is not None:
            return RepoSource(name, alias.repository, alias.revision, alias)
        if REPOSITORY_NAME.fullmatch(name) and ".." not in name:
            return RepoSource(name, name, alias=self.alias_of(name))
        nearest = get_close_matches(name.lower(), self.aliases, n=3, cutoff=0.5)
        known = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(self.aliases)}"
        raise InputError(f"no checkpoint is called {name!r}; {known}; or give owner/repository")

    def alias_of(self, repository: str) -> Alias | None:
        """The alias that a repository belongs to."""
        return next((a for a in self.aliases.values() if repository in (a.repository, *a.mirrors)), None)

    def replacement(self, repository: str) -> str | None:
        """A repository with the same files that is not known to be gone."""
        alias = self.alias_of(repository)
        others = () if alias is None else (alias.repository, *alias.mirrors)
        return next((other for other in others if other != repository and other not in self.unavailable), None)


def is_commit(revision: str) -> bool:
    """Whether this is a whole commit id, which stands for the same files forever."""
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def read_alias_table(home: Path) -> AliasTable:
    """aliases.json of the package, with the entries of `hub.json` in the cache folder over it."""
    packaged = read_json(Path(__file__).with_name("aliases.json"))
    user_table = read_json(home / USER_ALIASES_FILE) if (home / USER_ALIASES_FILE).is_file() else {}
    try:
        aliases = {**packaged["aliases"], **user_table.get("aliases", {})}
        return AliasTable(
            endpoint=str(user_table.get("endpoint", packaged["endpoint"])),
            allowed_hosts=(*map(str, packaged["hosts"]), *map(str, user_table.get("hosts", ()))),
            unavailable={**packaged["gone"], **user_table.get("gone", {})},
            aliases={name: _alias(name, entry) for name, entry in aliases.items()},
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{home / USER_ALIASES_FILE}: {error!r}; expected aliases, hosts, gone and endpoint as in aliases.json."
        ) from error


def _alias(name: str, entry: Json) -> Alias:
    lists = {key: tuple(map(str, value)) for key, value in entry.items() if key in ("mirrors", "variants")}
    rest = {key: value for key, value in entry.items() if key not in lists}
    return Alias(name, **lists, **rest)
