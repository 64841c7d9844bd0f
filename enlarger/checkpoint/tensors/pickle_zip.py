"""The zip file around a pickled checkpoint, checked before anything in it is used.

Everything is read from its one directory, which must be the last thing in the file and agree with every record's own
header, so that no two readers can see different records; and records are stored as they are, so that no size grows.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

MAX_DIRECTORY_BYTES = 4 << 20  # bytes of the list of records
ALLOWED_RECORDS = {
    "data.pkl",
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
}
STORAGE_PREFIX = "data/"  # the folder of the tensors' bytes
END_RECORD, ZIP64_END_RECORD, ZIP64_LOCATOR = (
    struct.Struct("<4s4H2IH"),
    struct.Struct("<4sQ2H2I4Q"),
    struct.Struct("<4sIQI"),
)
CENTRAL_HEADER, LOCAL_HEADER = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
UINT16_MAX, UINT32_MAX = 0xFFFF, 0xFFFFFFFF  # stand for a number that is found elsewhere in 64 bits
ALLOWED_FLAGS = 0x808  # that sizes follow the data, and that names are UTF-8


class PickleRejected(Exception):
    """What is wrong with a pickled checkpoint; the file is named where this is caught."""


@dataclass(frozen=True)
class ZipRecord:
    """Where a record's bytes lie in the file."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class _CentralEntry:
    """A record as the directory describes it."""

    name: str
    flags: int
    header_offset: int  # where its own header begins
    size: int
    crc32: int


def read_records(file: BinaryIO, size: int) -> dict[str, ZipRecord]:
    """The records by their names below the one folder that torch.save makes."""
    directory_start, length, count = _find_central_directory(file, size)
    if length > MAX_DIRECTORY_BYTES:
        raise PickleRejected(
            f"its zip directory has {length:,} bytes for {count:,} records, at most {MAX_DIRECTORY_BYTES:,}"
        )
    file.seek(directory_start)
    entries = sorted(_parse_central_directory(file.read(length)), key=lambda record: record.header_offset)
    if len(entries) != count or not entries or entries[0].header_offset != 0:
        raise PickleRejected(f"its zip directory lists {len(entries)} records, expected {count} from the first byte on")
    root = entries[0].name.partition("/")[0]
    ends = [record.header_offset for record in entries[1:]] + [directory_start]
    records: dict[str, ZipRecord] = {}
    for record, end in zip(entries, ends, strict=True):
        name = _check_record_name(record.name, root)
        if name in records:
            raise PickleRejected(f"it holds {name} twice")
        records[name] = _check_local_header(file, record, end)
    return records


def read_record(file: BinaryIO, records: Mapping[str, ZipRecord], name: str, max_bytes: int) -> bytes:
    """The bytes of a small record."""
    if name not in records:
        raise PickleRejected(f"it has no {name}")
    record = records[name]
    if record.size > max_bytes:
        raise PickleRejected(f"{name} has {record.size:,} bytes, at most {max_bytes:,}")
    file.seek(record.offset)
    data = file.read(record.size)
    if zlib.crc32(data) != record.crc32:
        raise PickleRejected(f"{name} does not have its checksum")
    return data


def _check_record_name(path: str, root: str) -> str:
    folder, _, name = path.partition("/")
    number = name.removeprefix(STORAGE_PREFIX)
    is_storage = number != name and number.isascii() and number.isdigit()
    if folder != root or not root.isprintable() or not (is_storage or name in ALLOWED_RECORDS):
        raise PickleRejected(f"it holds {path[:80]!r}, which is no part of what torch.save writes")
    return name


def _find_central_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the directory begins, how long it is, how many records it has."""
    zip64_size = ZIP64_END_RECORD.size + ZIP64_LOCATOR.size
    file.seek(max(0, size - zip64_size - END_RECORD.size))
    tail = file.read(zip64_size + END_RECORD.size).rjust(zip64_size + END_RECORD.size, b"\0")
    signature, disk, first, here, count, length, directory_start, comment = END_RECORD.unpack(tail[zip64_size:])
    if signature != b"PK\5\6" or disk or first or comment:
        raise PickleRejected("it is not as torch.save has written files since torch 1.6, or is cut short; save it anew")
    narrow_values, end = (here, count, length, directory_start), size - END_RECORD.size
    signature, disk, zip64_start, _ = ZIP64_LOCATOR.unpack(tail[ZIP64_END_RECORD.size : zip64_size])
    if signature == b"PK\6\7":
        signature, _, _, _, _, _, here, count, length, directory_start = ZIP64_END_RECORD.unpack(
            tail[: ZIP64_END_RECORD.size]
        )
        end -= zip64_size
        pairs = zip(
            narrow_values,
            (here, count, length, directory_start),
            (UINT16_MAX, UINT16_MAX, UINT32_MAX, UINT32_MAX),
            strict=True,
        )
        if signature != b"PK\6\6" or disk or zip64_start != end or any(a not in (b, limit) for a, b, limit in pairs):
            raise PickleRejected("the two ends of its zip directory contradict each other")
    if here != count or directory_start + length != end:
        raise PickleRejected("its zip directory does not lie where it says")
    return directory_start, length, count


def _parse_central_directory(data: bytes) -> Iterator[_CentralEntry]:
    position = 0
    while position < len(data):
        entry = CENTRAL_HEADER.unpack_from(data, position)
        (
            signature,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc32,
            compressed_size,
            size,
            name_length,
            extra_length,
            comment,
            disk,
            *_,
        ) = entry
        position += CENTRAL_HEADER.size + name_length + extra_length
        name = data[position - name_length - extra_length : position - extra_length].decode()
        size, compressed_size, header_offset = _zip64_values(
            data[position - extra_length : position], size, compressed_size, entry[-1]
        )
        if signature != b"PK\1\2" or comment or disk or flags & ~ALLOWED_FLAGS:
            raise PickleRejected(f"the zip entry of {name[:80]!r} is damaged or encrypted (flags {flags:#x})")
        if method or compressed_size != size:
            raise PickleRejected(
                f"{name[:80]!r} is compressed, {compressed_size:,} bytes to {size:,}; torch.save stores bytes as "
                "they are"
            )
        yield _CentralEntry(name, flags, header_offset, size, crc32)


def _zip64_values(extra: bytes, *numbers: int) -> Iterator[int]:
    """The numbers, those that did not fit in 32 bits from the extra field with id 1."""
    position, wide_values = 0, iter(())
    while position + 4 <= len(extra):
        field_id, length = struct.unpack_from("<2H", extra, position)
        if field_id == 1:
            wide_values = iter(struct.unpack_from(f"<{length // 8}Q", extra, position + 4))
        position += 4 + length
    return (next(wide_values, number) if number == UINT32_MAX else number for number in numbers)


def _check_local_header(file: BinaryIO, entry: _CentralEntry, end: int) -> ZipRecord:
    """A record's own header says the same as the directory, and its bytes end before the next record."""
    file.seek(entry.header_offset)
    signature, _, flags, method, _, _, _, _, size, name_length, extra_length = LOCAL_HEADER.unpack(
        file.read(LOCAL_HEADER.size)
    )
    name = file.read(name_length)
    start = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if signature != b"PK\3\4" or method or flags != entry.flags or name != entry.name.encode():
        raise PickleRejected(f"{entry.name[:80]!r} and the zip directory contradict each other")
    if size not in (0, UINT32_MAX, entry.size) or start + entry.size > end:
        raise PickleRejected(f"{entry.name[:80]!r} states {entry.size:,} bytes, but has {max(0, end - start):,}")
    return ZipRecord(start, entry.size, entry.crc32)
