"""What a data set is made of: each picture's place, size and caption; and what had to be left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enlarger.errors import InputError, list_names
from enlarger.image.decode import one_line
from enlarger.strict_json import is_array, is_object, parse_json, short_repr
from enlarger.tasks.latent_diffusion.conditioning import Size

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 1 << 16
CAPTION_KEYS = ("text", "caption", "prompt")  # in a JSON object beside a picture in a shard


@dataclass(frozen=True, slots=True)
class TarSlice:
    """A file inside an uncompressed tar."""

    shard: Path
    offset: int
    length: int
    extension: str  # all that follows the first point of its name

    @property
    def suffix(self) -> str:
        """The kind of file."""
        return Path(self.extension).suffix or self.extension

    def read(self) -> bytes:
        with self.shard.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.length)


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture of `size` as it is seen, and its caption; None where it has none."""

    name: str
    size: Size
    picture: Path | TarSlice
    caption: str | TarSlice | None = None
    caption_column: str | None = None  # of the JSON beside it, before the usual ones

    def content(self) -> bytes:
        """The bytes of the picture's file."""
        return self.picture.read() if isinstance(self.picture, TarSlice) else self.picture.read_bytes()

    def read_caption(self) -> str:
        """The caption in one line; empty where there is none. Raises InputError for one that is no text."""
        if not isinstance(self.caption, TarSlice):
            return self.caption or ""
        return caption_text(self.caption.read(), self.caption.suffix, self.name, self.caption_column)


@dataclass(frozen=True, eq=False)
class Entries:
    """The pictures found, in a fixed order, in `runs` that lie together on the disk; names left out with why."""

    entries: tuple[Entry, ...]
    runs: tuple[range, ...]
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])


def caption_text(content: bytes, suffix: str, name: str, column: str | None = None) -> str:
    """A caption file's text in one line; of a JSON object that in `column`, or under a usual key.

    Raises InputError for what is no text, or far too much of it.
    """
    if len(content) > MAX_CAPTION_BYTES:
        raise InputError(f"{name}: its caption has {len(content):,} bytes, expected at most {MAX_CAPTION_BYTES:,}")
    try:
        text = content.decode("utf-8-sig")
        found = parse_json(text) if suffix == ".json" else text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: its caption is no {'JSON' if suffix == '.json' else 'text in UTF-8'}") from error
    if is_object(found):
        keys = CAPTION_KEYS if column is None else (column, *CAPTION_KEYS)
        stated = [found[key] for key in keys if found.get(key) is not None]
        texts = [each for each in stated if isinstance(each, str) or is_array(each)]
        found = next(iter(texts or stated), None)
    return stated_caption(found, name)


def stated_caption(value: object, place: str) -> str:
    """A caption out of JSON or CSV in one line: a text, the first of several, or empty for null.

    Raises InputError for anything else.
    """
    if is_array(value):
        value = value[0] if value and all(isinstance(each, str) for each in value) else value or None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{place}: its caption is {short_repr(value)}, expected a text or a list of texts; write one, or leave it "
            "out"
        )
    return " ".join(value.split())


def describe_skipped(skipped: Mapping[str, str]) -> str:
    """One line: how many were left out, their names, and why the first was."""
    name, reason = next(iter(skipped.items()))
    names = list_names([one_line(each) for each in skipped])
    return f"{len(skipped)} of the data left out ({names}); {one_line(name)}: {one_line(reason)}"
