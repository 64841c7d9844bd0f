"""Files that go with pictures, such as masks: one for all, or a folder of them that are named like the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
        if not storage.is_folder(place):
            return storage, place
        matches = self._by_stem.get(picture.stem, ())
        if len(matches) != 1:
            found = f"found {len(matches)} files named {picture.stem} in {storage.show(place)}"
            raise InputError(f"{found}, expected one {self.what}")
        return storage, matches[0]

    @cached_property
    def _by_stem(self) -> Mapping[str, Sequence[Path]]:
        """The files of the folder by their names without suffixes, looked up once."""
        storage, folder = locate(self.location)
        found: dict[str, list[Path]] = {}
        for path in storage.files(folder):
            found.setdefault(path.stem, []).append(path)
        return found
