"""A folder of pictures: captions in text files beside them, or in `metadata.jsonl` or `metadata.csv`."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from enlarger.errors import InputError
from enlarger.image.decode import upright_size
from enlarger.image.picture import list_pictures
from enlarger.strict_json import is_object, parse_json
from enlarger.train.data.entries import CAPTION_SUFFIXES, Entries, Entry, caption_text

METADATA_FILES = ("metadata.jsonl", "metadata.csv")  # as the image folder of `datasets` has them
FILE_NAME = "file_name"


def read_folder_entries(folder: Path, caption_column: str) -> Entries:
    """All pictures in a folder and the folders in it, in order.

    A text file beside a picture counts more than a line about it. Raises InputError for metadata that says nothing or
    leads elsewhere.
    """
    skipped: dict[str, str] = {}
    stated = dict(_stated_captions(folder, caption_column, skipped))
    found: list[Entry] = []
    for path in list_pictures(folder):
        name = path.relative_to(folder).as_posix()
        try:
            width, height = upright_size(path)
            found.append(Entry(name, (height, width), path, _sidecar(path, name) or stated.get(path)))
        except InputError as error:
            skipped[name] = str(error)
    return Entries(tuple(found), (range(len(found)),), skipped)


def _sidecar(path: Path, name: str) -> str | None:
    """The caption in a file beside a picture; None where there is none."""
    for suffix in CAPTION_SUFFIXES:
        if (file := path.with_suffix(suffix)).is_file():
            return caption_text(file.read_bytes(), suffix, name)
    return None


def _stated_captions(folder: Path, column: str, skipped: dict[str, str]) -> Iterator[tuple[Path, str]]:
    for name in METADATA_FILES:
        for file in sorted(folder.rglob(name)):
            for place, row in _rows(file):
                picture = _picture_of(place, row, file)
                if not picture.is_file():
                    skipped[picture.relative_to(folder).as_posix()] = f"{place} names it, but it is not there"
                elif row.get(column):
                    yield picture, " ".join(str(row[column]).split())


def _picture_of(place: str, row: dict[str, object], file: Path) -> Path:
    name = row.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: no {FILE_NAME}; each line names a picture in it, and its caption in text")
    picture = file.parent / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{place}: {FILE_NAME} {name!r} leads out of the folder; name a picture inside it")
    return picture


def _rows(file: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """The lines of metadata as objects, each with where it stands."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text in UTF-8 ({error}); write it anew") from error
    if file.suffix == ".csv":
        for line, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
            yield f"{file}, line {line}", {key: value for key, value in row.items() if isinstance(key, str)}
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{file}, line {number}", _parsed(line, f"{file}, line {number}")


def _parsed(line: str, place: str) -> dict[str, object]:
    try:
        found = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'{place}: no JSON ({error}); each line is an object such as {{"file_name": "a.png"}}'
        ) from error
    if not is_object(found):
        raise InputError(f"{place}: found a JSON {type(found).__name__}, expected an object with {FILE_NAME} and text")
    return found
