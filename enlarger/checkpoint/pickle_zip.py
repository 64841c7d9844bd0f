"""The zip file around a pickled checkpoint, checked before anything in it is used.

Everything is read from its one directory, which must be the last thing in the file and agree with every record's own
header, so that no two readers can see different records; and records are stored as they are, so that no size grows.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

LARGEST_DIRECTORY = 4 << 20  # bytes of the list of records
RECORDS = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
STORED = "data/"  # the folder of the tensors' bytes
END, END64, PLACE64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
LISTED, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
NARROW, WIDE = 0xFFFF, 0xFFFFFFFF  # stand for a number that is found elsewhere in 64 bits
FLAGS = 0x808  # that sizes follow the data, and that names are UTF-8


class Refused(Exception):
    """What is wrong with a pickled checkpoint; the file is named where this is caught."""


@dataclass(frozen=True)
class Record:
    """Where a record's bytes lie in the file."""

    start: int
    size: int
    checksum: int


@dataclass(frozen=True)
class _Listed:
    """A record as the directory describes it."""

    name: str
    flags: int
    header: int  # where its own header begins
    size: int
    checksum: int


def read_records(file: BinaryIO, size: int) -> dict[str, Record]:
    """The records by their names below the one folder that torch.save makes."""
    begin, length, count = _directory(file, size)
    if length > LARGEST_DIRECTORY:
        raise Refused(f"its zip directory has {length:,} bytes for {count:,} records, at most {LARGEST_DIRECTORY:,}")
    file.seek(begin)
    listed = sorted(_list(file.read(length)), key=lambda record: record.header)
    if len(listed) != count or not listed or listed[0].header != 0:
        raise Refused(f"its zip directory lists {len(listed)} records, expected {count} from the first byte on")
    root = listed[0].name.partition("/")[0]
    ends = [record.header for record in listed[1:]] + [begin]
    records: dict[str, Record] = {}
    for record, end in zip(listed, ends, strict=True):
        name = _known_name(record.name, root)
        if name in records:
            raise Refused(f"it holds {name} twice")
        records[name] = _record(file, record, end)
    return records


def read_content(file: BinaryIO, records: Mapping[str, Record], name: str, most: int) -> bytes:
    """The bytes of a small record."""
    if name not in records:
        raise Refused(f"it has no {name}")
    record = records[name]
    if record.size > most:
        raise Refused(f"{name} has {record.size:,} bytes, at most {most:,}")
    file.seek(record.start)
    found = file.read(record.size)
    if zlib.crc32(found) != record.checksum:
        raise Refused(f"{name} does not have its checksum")
    return found


def _known_name(path: str, root: str) -> str:
    folder, _, name = path.partition("/")
    number = name.removeprefix(STORED)
    is_storage = number != name and number.isascii() and number.isdigit()
    if folder != root or not root.isprintable() or not (is_storage or name in RECORDS):
        raise Refused(f"it holds {path[:80]!r}, which is no part of what torch.save writes")
    return name


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the directory begins, how long it is, how many records it has."""
    wide = END64.size + PLACE64.size
    file.seek(max(0, size - wide - END.size))
    found = file.read(wide + END.size).rjust(wide + END.size, b"\0")
    mark, disk, first, here, count, length, begin, comment = END.unpack(found[wide:])
    if mark != b"PK\5\6" or disk or first or comment:
        raise Refused("it is not as torch.save has written files since torch 1.6, or is cut short; save it anew")
    short, end = (here, count, length, begin), size - END.size
    mark, disk, where, _ = PLACE64.unpack(found[END64.size : wide])
    if mark == b"PK\6\7":
        mark, _, _, _, _, _, here, count, length, begin = END64.unpack(found[: END64.size])
        end -= wide
        pairs = zip(short, (here, count, length, begin), (NARROW, NARROW, WIDE, WIDE), strict=True)
        if mark != b"PK\6\6" or disk or where != end or any(a not in (b, limit) for a, b, limit in pairs):
            raise Refused("the two ends of its zip directory contradict each other")
    if here != count or begin + length != end:
        raise Refused("its zip directory does not lie where it says")
    return begin, length, count


def _list(data: bytes) -> Iterator[_Listed]:
    at = 0
    while at < len(data):
        entry = LISTED.unpack_from(data, at)
        mark, _, _, flags, method, _, _, checksum, packed, size, name_length, extra_length, comment, disk, *_ = entry
        at += LISTED.size + name_length + extra_length
        name = data[at - name_length - extra_length : at - extra_length].decode()
        size, packed, header = _wide(data[at - extra_length : at], size, packed, entry[-1])
        if mark != b"PK\1\2" or comment or disk or flags & ~FLAGS:
            raise Refused(f"the zip entry of {name[:80]!r} is damaged or encrypted (flags {flags:#x})")
        if method or packed != size:
            raise Refused(
                f"{name[:80]!r} is compressed, {packed:,} bytes to {size:,}; torch.save stores bytes as they are"
            )
        yield _Listed(name, flags, header, size, checksum)


def _wide(extra: bytes, *numbers: int) -> Iterator[int]:
    """The numbers, those that did not fit in 32 bits from the extra field with id 1."""
    at, more = 0, iter(())
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            more = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
        at += 4 + length
    return (next(more, number) if number == WIDE else number for number in numbers)


def _record(file: BinaryIO, listed: _Listed, end: int) -> Record:
    """A record's own header says the same as the directory, and its bytes end before the next record."""
    file.seek(listed.header)
    mark, _, flags, method, _, _, _, _, size, name_length, extra_length = LOCAL.unpack(file.read(LOCAL.size))
    name = file.read(name_length)
    start = listed.header + LOCAL.size + name_length + extra_length
    if mark != b"PK\3\4" or method or flags != listed.flags or name != listed.name.encode():
        raise Refused(f"{listed.name[:80]!r} and the zip directory contradict each other")
    if size not in (0, WIDE, listed.size) or start + listed.size > end:
        raise Refused(f"{listed.name[:80]!r} claims {listed.size:,} bytes, but has {max(0, end - start):,}")
    return Record(start, listed.size, listed.checksum)
