"""Files of torch before 1.6: five programs one after the other, then the numbers of each storage, its count first."""

import struct
from typing import BinaryIO

from enlarger.checkpoint.tensors.pickle_opcodes import (
    DictValue,
    StorageRef,
    UnpicklerState,
    execute_program,
    require_tensors,
)
from enlarger.checkpoint.tensors.pickle_zip import PickleRejected

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first program: a number
LEGACY_VERSION = 1001
COUNT = struct.Struct("<q")


def check_legacy(file: BinaryIO, size: int, max_program_bytes: int, bare_tensor: bool) -> frozenset[str]:
    """What the programs of such a file name, all of it allowed, when every storage lies in the file where it must.

    Raises `PickleRejected` for all else.
    """
    file.seek(0)
    head = file.read(max_program_bytes)
    version, position = execute_program(head, len(LEGACY_MAGIC))
    machine, position = execute_program(head, position)
    if version.stack != [LEGACY_VERSION]:
        raise PickleRejected("it is of another version than torch wrote before 1.6")
    if not _is_little_endian(machine):
        raise PickleRejected("its numbers are big-endian, expected little-endian")
    weights, position = execute_program(head, position)
    require_tensors(weights, bare_tensor)
    keys, position = execute_program(head, position)
    listed = keys.texts
    if len(set(listed)) != len(listed) or set(listed) != weights.storages.keys() or keys.global_names:
        raise PickleRejected("its list of stored numbers is not that of its tensors")
    _check_storages(file, position, size, [weights.storages[key] for key in listed])
    return frozenset(weights.global_names | machine.global_names)


def _is_little_endian(machine: UnpicklerState) -> bool:
    found = machine.stack[0] if len(machine.stack) == 1 else None
    return isinstance(found, DictValue) and found.entries.get("little_endian") is True


def _check_storages(file: BinaryIO, position: int, size: int, storages: list[StorageRef]) -> None:
    """Each storage's own count is that of the tensors' program, and the last ends with the file."""
    for storage in storages:
        file.seek(position)
        data = file.read(COUNT.size)
        if len(data) < COUNT.size or COUNT.unpack(data) != (storage.num_elements,):
            raise PickleRejected("a storage has another count of numbers than its tensors, or the file is cut short")
        position += COUNT.size + storage.num_elements * storage.dtype.itemsize
    if position != size:
        raise PickleRejected(f"its numbers end at byte {position:,} of {size:,}: cut short, or something follows them")
