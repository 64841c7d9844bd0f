"""Files that go with pictures, such as masks: one for all, or a folder of them that are named like the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from enlarger.cluster.storage import Storage, locate
from enlarger.errors import InputError


@dataclass(frozen=True)
class Companions:
    """Where they are, and what they are to a request."""

    field: str  # of the request
    location: str
    what: str  # for a person: mask, depth map

    def find(self, picture: Path) -> tuple[Storage, Path]:
        """The one that goes with a picture. Raises InputError where not one does."""
        storage, place = locate(self.location)
        return storage, _find(storage, place, picture.stem, self.what)


def _find(storage: Storage, place: Path, stem: str, what: str) -> Path:
    """The file itself, or that of a folder which is named like a picture."""
    if not storage.is_folder(place):
        return place
    matches = _by_stem(storage, place).get(stem, ())
    if len(matches) != 1:
        raise InputError(f"found {len(matches)} files named {stem} in {storage.show(place)}, expected one {what}")
    return matches[0]


@cache
def _by_stem(storage: Storage, folder: Path) -> Mapping[str, Sequence[Path]]:
    """The files of a folder by their names without suffixes, looked up once in a process."""
    found: dict[str, list[Path]] = {}
    for path in storage.files(folder):
        found.setdefault(path.stem, []).append(path)
    return found
