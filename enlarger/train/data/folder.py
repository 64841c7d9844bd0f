"""A folder of pictures: captions in text files beside them, or in `metadata.jsonl` or `metadata.csv`."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from enlarger.errors import InputError
from enlarger.image.decode import upright_size
from enlarger.image.picture import list_pictures
from enlarger.strict_json import is_object, parse_json, short_repr
from enlarger.train.data.entries import CAPTION_SUFFIXES, Entries, Entry, caption_text, stated_caption

METADATA_FILES = ("metadata.jsonl", "metadata.csv")  # as the image folder of `datasets` has them
FILE_NAME = "file_name"
MAX_NAME_BYTES = 255  # of a file, in every usual file system


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
                elif caption := stated_caption(row.get(column), place):
                    yield picture, caption


def _picture_of(place: str, row: dict[str, object], file: Path) -> Path:
    name = row.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: no {FILE_NAME}; each line names a picture in it, and its caption in text")
    if any(len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES for part in name.split("/")) or "\0" in name:
        raise InputError(f"{place}: {FILE_NAME} {short_repr(name)} is no name of a file; write the picture's")
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
        yield from _csv_rows(file, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{file}, line {number}", _parsed(line, f"{file}, line {number}")


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield f"{file}, line {reader.line_num}", {key: value for key, value in row.items() if isinstance(key, str)}
    except csv.Error as error:
        raise InputError(
            f"{file}, after line {reader.line_num}: no CSV ({error}); close each quote, and keep captions under "
            f"{csv.field_size_limit():,} characters"
        ) from error


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
