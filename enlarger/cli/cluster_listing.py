"""What a batch on a cluster has to do, found while it runs: by the rules of folders that hold without a cluster too."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from enlarger.cli.earlier_results import REASON, is_earlier_result
from enlarger.cli.files import OutputNaming, disk_name, outputs_of
from enlarger.cli.inputs import LOCAL_DISK, InputFile, PassedOver, search
from enlarger.cluster.storage import Storage, locate
from enlarger.strict_json import Json


@dataclass(frozen=True)
class Found:
    """What a search came to, and through which location on the command line."""

    entry: InputFile | PassedOver
    storage: Storage
    location: str
    folder: str  # what is listed together: a folder, or all files that are named themselves


@dataclass(frozen=True)
class PictureListing:
    """Lists inputs, folder by folder: the same jobs in the same order each time that it is called."""

    inputs: Sequence[str]
    naming: OutputNaming  # its folder is the path in the output's storage
    output: Storage
    recursive: bool = False
    again: bool = False

    def __call__(self, done: Mapping[str, str]) -> Iterator[Json]:
        """A job for each picture, or what is to be said of it; `done` has the versions of inputs by their key."""
        reserved: dict[str, str] = {}  # by which input a name is taken, where several inputs may want it
        for _, group in groupby(self._search(), key=lambda found: found.folder):
            for job in self._folder(list(group), reserved):
                yield job | ({"done": done[job["key"]]} if job["key"] in done else {})

    def count(self) -> int:
        """How many pictures there are."""
        return sum(isinstance(found.entry, InputFile) for found in self._search())

    def _search(self) -> Iterator[Found]:
        """What is named itself first, then the folders."""
        places = [(location, *locate(location)) for location in self.inputs]
        folders = [storage.is_folder(root) for _, storage, root in places]
        for is_folder in (False, True):
            for (location, storage, root), found_folder in zip(places, folders, strict=True):
                if found_folder == is_folder:
                    disk = LOCAL_DISK if storage.is_local else storage
                    for entry in search(root, self.recursive, disk):
                        folder = f"{location} {entry.path.parent}" if is_folder else ""
                        yield Found(entry, storage, location, folder)

    def _folder(self, group: list[Found], reserved: dict[str, str]) -> Iterator[Json]:
        """The jobs of one folder, whose names are known together, so that they never collide."""
        entries = [found.entry for found in group if isinstance(found.entry, InputFile)]
        outputs = outputs_of([entry for entry in entries if entry.error is None], self.naming)
        for found in group:
            entry, shown = found.entry, found.storage.show(found.entry.path)
            if isinstance(entry, PassedOver):
                yield _job(shown, passed=entry.reason)
            elif entry.error is not None:
                yield _job(shown, error=entry.error)
            elif not (entry.is_named_by_user or self.again) and is_earlier_result(entry.path, found.storage.open):
                yield _job(shown, passed=REASON)
            else:
                yield self._picture(found, outputs[entry], shown, reserved)

    def _picture(self, found: Found, outputs: Sequence[Path], shown: str, reserved: dict[str, str]) -> Json:
        key = self.output.show(outputs[0])
        if len(self.inputs) > 1:
            first = reserved.setdefault(disk_name(outputs[0]), shown)
            if first != shown:
                return _job(shown, error=f"{key} is already the result of {first}; choose another --output")
        return _job(shown, key) | {
            "location": found.location,
            "path": str(found.entry.path),
            "outputs": [str(path) for path in outputs],
        }


@dataclass(frozen=True)
class PromptListing:
    """Lists prompts: each with its seed, its name, and its files."""

    prompts: Sequence[tuple[str, Any, str]]
    outputs: Sequence[Sequence[Path]]
    output: Storage

    def __call__(self, done: Mapping[str, str]) -> Iterator[Json]:
        """A job for each prompt, whose version is its text."""
        for (prompt, seed, name), outputs in zip(self.prompts, self.outputs, strict=True):
            key = self.output.show(outputs[0])
            job = _job(name, key) | {"version": hashlib.sha256(prompt.encode()).hexdigest()[:32]}
            job |= {"outputs": [str(path) for path in outputs], "request": {"prompt": prompt, "seed": seed}}
            yield job | ({"done": done[key]} if key in done else {})

    def count(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)


def _job(shown: str, key: str | None = None, **said: str) -> Json:
    """What every job has: its input as a person names it, and by what the manifest knows it."""
    return {"input": shown, "key": shown if key is None else key, **said}
