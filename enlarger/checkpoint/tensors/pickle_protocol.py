"""Programs of pickle protocols 3 to 5 in the words of protocol 2, which is what both gates and torch's reader know.

Nothing is run and nothing is judged here: a step without a counterpart stays as it is, and the gates refuse it.
"""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pickletools import genops
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from enlarger.checkpoint.tensors.pickle_opcodes import MAX_OPCODES
from enlarger.checkpoint.tensors.pickle_zip import PickleRejected, ZipRecord

PROTOCOLS = range(3, 6)
PROGRAM_NAME = "data.pkl"
TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}  # no weight is made of them; texts stand for them
STORES = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
RECALLS = {"BINGET", "LONG_BINGET"}
SAME_STEPS = {"EMPTY_SET": b"]", "ADDITEMS": b"e", "FROZENSET": b"t", "FRAME": b""}  # a set becomes a list or a tuple


@dataclass
class _Translation:
    """The steps so far; texts are written where they are used, never recalled, so that a name can take them back."""

    max_bytes: int
    steps: list[tuple[bytes, str | None]] = field(default_factory=list[tuple[bytes, str | None]])
    memo: dict[int, str | None] = field(default_factory=dict[int, str | None])
    size: int = 0

    def add(self, step: bytes, text: str | None = None) -> None:
        self.steps.append((step, text))
        self.size += len(step)
        if self.size > self.max_bytes:
            raise PickleRejected(f"its program has more than {self.max_bytes:,} bytes")

    def add_text(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self.add(b"X" + struct.pack("<I", len(data)) + data, text)

    def store(self, index: int) -> None:
        text = self.steps[-1][1] if self.steps else None
        self.memo[index] = text
        if text is None:
            self.add(b"r" + struct.pack("<I", index))

    def add_name(self, step: bytes) -> None:
        """A module and its member, the two texts before."""
        module, member = (text for _, text in self.steps[-2:]) if len(self.steps) > 1 else (None, None)
        if module is None or member is None or "\n" in module + member:
            self.add(step)
            return
        del self.steps[-2:]
        self.add(f"c{module}\n{member}\n".encode())

    def take(self, name: str, argument: Any, step: bytes) -> None:
        """One step of the program, by its name."""
        if name in TEXTS:
            self.add_text(str(argument))
        elif name in BYTES:
            self.add_text(bytes(argument or b"").decode("latin1"))
        elif name in STORES:
            self.store(len(self.memo) if name == "MEMOIZE" else int(argument or 0))
        elif name in RECALLS and (text := self.memo.get(int(argument or 0))) is not None:
            self.add_text(text)
        elif name == "STACK_GLOBAL":
            self.add_name(step)
        else:
            self.add(SAME_STEPS.get(name, step))


def is_newer_protocol(program: bytes) -> bool:
    return program[:1] == b"\x80" and len(program) > 1 and program[1] in PROTOCOLS


def as_protocol_2(program: bytes, max_bytes: int) -> bytes:
    """The same program in protocol 2. Raises ValueError for what is no program, `PickleRejected` for a large one."""
    translation, end = _Translation(max_bytes), 0
    for count, ((opcode, argument, begin), (_, _, after)) in enumerate(pairwise(genops(program))):
        if count > MAX_OPCODES:
            raise PickleRejected(f"its program has more than {MAX_OPCODES:,} steps")
        start, end = begin or 0, after or 0
        if count > 0:
            translation.take(opcode.name, argument, program[start:end])
    return b"\x80\x02" + b"".join(step for step, _ in translation.steps) + program[end:]


def rewritten(file: BinaryIO, records: Mapping[str, ZipRecord], program: bytes) -> BinaryIO:
    """An unnamed copy of the checkpoint around another program."""
    copy: BinaryIO = TemporaryFile()  # noqa: SIM115
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as made:
        for name, record in records.items():
            with made.open(zipfile.ZipInfo(f"archive/{name}"), "w", force_zip64=True) as entry:
                if name == PROGRAM_NAME:
                    entry.write(program)
                else:
                    file.seek(record.offset)
                    copyfileobj(_Part(file, record.size), entry)
    copy.seek(0)
    return copy


@dataclass
class _Part:
    """The next bytes of a file, as a file."""

    file: BinaryIO
    left: int

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(self.left if count < 0 else min(count, self.left))
        self.left -= len(data)
        return data
