"""Files made to cost far more than they weigh, for every reader of files: each kind at any size, and how it is read."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from enlarger.checkpoint.adapters.lora import read_lora
from enlarger.checkpoint.adapters.textual_inversion import read_textual_inversion
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.errors import CheckpointError
from enlarger.hub.licence import read_licence
from enlarger.strict_json import parse_json, read_json
from tests.support.hostile import call, name, value, zipped

REBUILD = ("torch._utils", "_rebuild_tensor_v2")
ENTRY = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'


@dataclass(frozen=True)
class Kind:
    """How many bytes of it are made, and what reads them."""

    make: Callable[[int], bytes]
    read: Callable[[Path], object]


class Attention(nn.Module):
    """A network whose layers a LoRA may change."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(4, 4)})


# ---- readers


def read_tensors(path: Path) -> object:
    tensors = open_checkpoint(path, allow_pickle=True)
    return [tensors.get_tensor(key) for key in tensors.keys()]


def read_adapter(path: Path) -> object:
    return read_lora(path, {"unet": Attention()}, allow_pickle=True)


def read_words(path: Path) -> object:
    return read_textual_inversion(path, allow_pickle=True)


def read_card(path: Path) -> object:
    return read_licence(path.read_text())


def read_listing(path: Path) -> object:
    try:
        return parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:  # as `hub.listing` and `hub.pull` do
        raise CheckpointError(str(error)) from error


# ---- makers


def repeated(unit: str, size: int, before: str = "", after: str = "", between: str = ",") -> str:
    count = max(1, size // (len(unit) + len(between)))
    return before + between.join([unit] * count) + after


def safetensors(header: str | bytes, data: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def header_of(unit: str) -> Callable[[int], bytes]:
    """A header with one list of many values."""
    return lambda size: safetensors(repeated(unit, size, '{"a":[', "]}"))


def many_entries(size: int) -> bytes:
    count = size // 60
    return safetensors("{" + ",".join(ENTRY.format(index) for index in range(count)) + "}")


def adapter_config(config: Callable[[int], Mapping[str, Any]]) -> Callable[[int], bytes]:
    """A LoRA of one layer with PEFT's config in its header."""

    def make(size: int) -> bytes:
        header = {"__metadata__": {"lora_adapter_metadata": json.dumps(config(size))}}
        for place, key in enumerate(("unet.attn1.to_q.lora_A.weight", "unet.attn1.to_q.lora_B.weight")):
            header[key] = {
                "dtype": "F32",
                "shape": [[1, 4], [4, 1]][place],
                "data_offsets": [16 * place, 16 * place + 16],
            }  # type: ignore[dict-item]
        return safetensors(json.dumps(header), bytes(32))

    return make


def metadata(key: str, unit: str) -> Callable[[int], bytes]:
    def make(size: int) -> bytes:
        text = repeated(unit, size // 2, "[", "]")
        return safetensors(
            json.dumps({"__metadata__": {key: text}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
            bytes(4),
        )

    return make


def pickled(steps: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """A file of torch.save with these steps after an empty dictionary."""
    records = {"byteorder": b"little", "data/0": bytes(16), "version": b"3\n"}
    return lambda size: zipped(records | {"data.pkl": b"\x80\x02}" + steps(size) + b"."})


def storage() -> bytes:
    return b"(" + value("storage") + name("torch", "FloatStorage") + value("0") + value("cpu") + value(4) + b"tQ"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    return call(*REBUILD, storage(), offset, shape, stride, False, call("collections", "OrderedDict"))


def one_tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Callable[[int], bytes]:
    return pickled(lambda _: value("w") + tensor(shape, stride, offset) + b"s")


def listed(unit: bytes, before: bytes = b"") -> Callable[[int], bytes]:
    """A list of one step many times, beside a tensor."""

    def steps(size: int) -> bytes:
        weights = value("w") + tensor((4,), (1,)) + b"s"
        return weights + before + value("x") + b"](" + unit * (size // len(unit)) + b"es"

    return pickled(steps)


def encoded_often(size: int) -> bytes:
    text = value("A" * size) + b"q\x01" + b"0"
    again = b"h\x03h\x01h\x02\x86R" * 150
    before = text + value("latin1") + b"q\x020" + name("_codecs", "encode") + b"q\x030"
    return pickled(lambda _: value("w") + tensor((4,), (1,)) + b"s" + before + value("x") + b"](" + again + b"es")(size)


def words(unit: str) -> Callable[[int], bytes]:
    return lambda size: repeated(unit, size, between="").encode()


def document(unit: str) -> Callable[[int], bytes]:
    return lambda size: repeated(unit, size, '{"a":[', "]}").encode()


HUGE = 1 << 61
HEADER_VALUES = {"lists": "[]", "objects": "{}", "numbers": "1.5", "words": '"ab"', "nested lists": "[[[]]]"}
SHAPE_HEADER = '{"a":{"dtype":"F32","data_offsets":[0,4],"shape":['
KINDS: Mapping[str, Kind] = {
    **{
        f"a header of {label}": Kind(header_of(unit), read_tensors)
        for label, unit in HEADER_VALUES.items()
    },
    "a header of deep lists": Kind(lambda size: safetensors('{"a":' + "[" * size + "]" * size + "}"), read_tensors),
    "a header of many tensors": Kind(many_entries, read_tensors),
    "a header of blanks": Kind(lambda size: safetensors("{" + " " * size + "}"), read_tensors),
    "a header of signs above ASCII": Kind(lambda size: safetensors('{"\U0001f600' + "a" * size + '":1}'), read_tensors),
    "a header of one number": Kind(lambda size: safetensors('{"a":' + "9" * size + "}"), read_tensors),
    "a header without end": Kind(lambda size: safetensors('{"a":"' + "b" * size), read_tensors),
    "a header that says one tensor twice": Kind(
        lambda size: safetensors(repeated(ENTRY.format("a"), size, "{", "}")), read_tensors
    ),
    "a shape of many sides": Kind(
        lambda size: safetensors(repeated("1", size, SHAPE_HEADER, "]}}"), bytes(4)), read_tensors
    ),
    "metadata that are no texts": Kind(
        lambda size: safetensors(repeated("[]", size, '{"__metadata__":{"a":[', "]}}")), read_tensors
    ),
    "configs in a header": Kind(metadata("enlarger.configs", "[]"), read_single_file),
    "a LoRA's config of lists": Kind(metadata("lora_adapter_metadata", "[]"), read_adapter),
    "a LoRA's config of objects": Kind(metadata("lora_adapter_metadata", "{}"), read_adapter),
    "a LoRA's pattern without end": Kind(
        adapter_config(lambda _: {"unet.alpha_pattern": {"(a+)+" * 8 + "$": 1, "(.*)*" * 9 + "x": 2}}), read_adapter
    ),
    "a LoRA's many patterns": Kind(
        adapter_config(lambda size: {"unet.alpha_pattern": {f"layer.{index}": 1 for index in range(size // 16)}}),
        read_adapter,
    ),
    "a LoRA's pattern of many dots": Kind(
        adapter_config(lambda size: {"unet.alpha_pattern": {"." * size: 1}}), read_adapter
    ),
    "a LoRA's pattern of many wildcards": Kind(
        adapter_config(lambda size: {"unet.alpha_pattern": {".*" * (size // 2): 1}}), read_adapter
    ),
    "a LoRA of many names": Kind(many_entries, read_adapter),
    "an inversion of many names": Kind(many_entries, read_words),
    "one text encoded often": Kind(encoded_often, read_tensors),
    "one text encoded often, as an inversion": Kind(encoded_often, read_words),
    "a pickle of lists": Kind(listed(b"]"), read_tensors),
    "a pickle of dictionaries": Kind(listed(b"}"), read_tensors),
    "a pickle of pairs": Kind(listed(b"K\1\x85"), read_tensors),
    "a pickle of numbers": Kind(listed(b"J\0\0\1\0"), read_tensors),
    "a pickle of marks": Kind(pickled(lambda size: b"(" * size), read_tensors),
    "a pickle of nested pairs": Kind(pickled(lambda size: b"K\1" + b"\x85" * size), read_tensors),
    "a pickle of ordered dictionaries": Kind(
        listed(b"h\x09)R", name("collections", "OrderedDict") + b"q\x090"), read_tensors
    ),
    "a pickle of recalled texts": Kind(listed(b"h\x09", value("b" * 1000) + b"q\x090"), read_tensors),
    "a pickle of memo places": Kind(listed(b"K\1r\xff\xff\xff\x7f"), read_tensors),
    "a pickle of long numbers": Kind(listed(b"\x8a\xff" + b"\x7f" * 255), read_tensors),
    "a text of signs above ASCII": Kind(
        lambda size: pickled(lambda _: value("\U0001f600" + "a" * size) + tensor((4,), (1,)) + b"s")(size), read_tensors
    ),
    "an empty tensor of huge sides": Kind(one_tensor((0, HUGE, HUGE), (HUGE, HUGE, 1)), read_tensors),
    "an empty tensor of one huge side": Kind(one_tensor((0, HUGE), (1, 1)), read_tensors),
    "a tensor far away": Kind(one_tensor((0,), (1,), HUGE), read_tensors),
    "a tensor that repeats a number": Kind(one_tensor((1 << 40,), (0,)), read_tensors),
    "an index of lists": Kind(document("[]"), read_json),
    "an index of objects": Kind(document("{}"), read_json),
    "a vocabulary of short words": Kind(
        lambda size: ("{" + ",".join(f'"{index}":{index}' for index in range(size // 12)) + "}").encode(), read_json
    ),
    "a listing of files": Kind(document('{"rfilename":""}'), read_listing),
    "a card of headings": Kind(words("# "), read_card),
    "a card of blanks": Kind(lambda size: b"# a" + b" " * size + b"b", read_card),
    "a card of rules": Kind(lambda size: b"# a" + b" #" * (size // 2) + b"b", read_card),
    "a card of front matter": Kind(lambda size: b"---\nlicense:" + b"\n " * (size // 2) + b"\n---", read_card),
    "a card of licences": Kind(words("license:* [ ]\n"), read_card),
    "a card of empty lines": Kind(lambda size: b"# misuse\n" + b"\n" * size, read_card),
}  # fmt: skip
"""By name. `size` is about how many bytes a file has; those of one tensor are small at any size."""
