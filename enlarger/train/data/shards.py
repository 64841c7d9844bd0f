"""WebDataset shards: uncompressed tars in which the files of one sample follow each other and share a name."""

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

from enlarger.errors import InputError
from enlarger.image.decode import upright_size
from enlarger.image.encode import SUFFIXES
from enlarger.train.data.entries import CAPTION_SUFFIXES, Entries, Entry, TarSlice

TAR_SUFFIX = ".tar"
CAPTIONS = (*CAPTION_SUFFIXES, ".json")
BRACES = re.compile(r"\{([^{}]*)\}")
MAX_SHARDS = 100_000


def expand_shards(pattern: str) -> list[Path]:
    """The shards that a path names: one, several in braces (`data-{000..012}.tar`), or those that a glob finds.

    Raises InputError where one is missing, or none is found.
    """
    paths: list[Path] = []
    for name in _expand_braces(pattern):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        paths += [Path(each) for each in found]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        raise InputError(f"{missing[0] if missing else pattern}: no such shard; check the path, its braces and stars")
    return paths


def _expand_braces(pattern: str) -> list[str]:
    pieces = BRACES.split(pattern)  # text and what is in braces, in turn
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    count = 1
    for each in choices:
        count *= len(each)
    if count > MAX_SHARDS:
        raise InputError(f"{pattern}: names {count:,} shards, at most {MAX_SHARDS:,} are read; give fewer")
    return ["".join(each) for each in product(*choices)]


def _choices(braces: str) -> list[str]:
    """Of `000..012` the numbers, as wide as they are written; of `a,b` each."""
    if (span := re.fullmatch(r"(\d+)\.\.(\d+)", braces)) is not None:
        first, last = span.groups()
        if int(last) - int(first) >= MAX_SHARDS:
            raise InputError(f"{{{braces}}}: names too many shards, at most {MAX_SHARDS:,} are read; give fewer")
        return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return braces.split(",")


def read_shard_entries(shards: Sequence[Path], caption_column: str | None = None) -> Entries:
    """All samples that have a picture; they are read once, one shard after the other, and a sample at a time.

    `caption_column` names the caption in their JSON files, before the usual keys.
    """
    skipped: dict[str, str] = {}
    found: list[Entry] = []
    runs: list[range] = []
    for shard in shards:
        first = len(found)
        found += _samples(shard, skipped, caption_column)
        runs.append(range(first, len(found)))
    return Entries(tuple(found), tuple(runs), skipped)


def _samples(shard: Path, skipped: dict[str, str], caption_column: str | None) -> Iterator[Entry]:
    """The samples of a shard; what its end lacks, if it is cut short, is left out and said."""
    for key, files in groupby(_files(shard, skipped), lambda named: named[0]):
        parts = sorted((file for _, file in files), key=lambda file: len(file.extension))
        name = f"{shard}/{key}"
        picture = next((file for file in parts if file.suffix in SUFFIXES), None)
        if picture is None:
            continue
        caption = next((file for suffix in CAPTIONS for file in parts if file.suffix == suffix), None)
        try:
            width, height = upright_size(picture.read())
            yield Entry(name, (height, width), picture, caption, caption_column)
        except InputError as error:
            skipped[name] = str(error)


def _files(shard: Path, skipped: dict[str, str]) -> Iterator[tuple[str, TarSlice]]:
    """Each file of a tar with its sample's name: what comes before the first point of the file's name."""
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - all of them would be kept; typeshed lacks it
                if member.offset_data + member.size > size:
                    break
                if member.isfile():
                    folder, _, base = member.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    place = TarSlice(shard, member.offset_data, member.size, f".{extension.lower()}")
                    yield f"{folder}/{stem}".lstrip("/"), place
            if not _ends_at(shard, tar.offset):
                skipped[str(shard)] = "damaged or cut short: what follows is left out; fetch it again"
    except tarfile.TarError as error:
        skipped[str(shard)] = f"{error}; expected an uncompressed tar; unpack it, or fetch it again"


def _ends_at(shard: Path, offset: int) -> bool:
    """Whether the mark of a tar's end is there: a block of zeros. tarfile takes a damaged header for the end too."""
    with shard.open("rb") as stream:
        stream.seek(offset)
        return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
