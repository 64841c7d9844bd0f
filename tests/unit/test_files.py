"""Files of weights read by name: types, blocks, shards, and every kind of damage as one named error."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from enlarger.checkpoint.tensors import safetensors_file
from enlarger.checkpoint.tensors.open import open_checkpoint, open_weights
from enlarger.checkpoint.tensors.safetensors_file import DTYPES
from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
from enlarger.errors import CheckpointError

TENSORS = {
    "half": torch.arange(7, dtype=torch.float16),
    "wide.weight": torch.linspace(-1, 1, 24).reshape(2, 3, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "ids": torch.arange(5),
    "flags": torch.tensor([True, False]),
    "brain": torch.ones(3, dtype=torch.bfloat16),
}


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    weights = open_checkpoint(tmp_path / "a.safetensors")
    assert set(weights.keys()) == set(TENSORS) and weights.path == tmp_path / "a.safetensors"
    for name, tensor in TENSORS.items():
        assert weights.shape(name) == tuple(tensor.shape) and weights.dtype(name) == tensor.dtype
        found = weights.get_tensor(name)
        assert found.dtype == tensor.dtype and found.equal(tensor)


def test_writes_what_safetensors_reads(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", TENSORS)
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(TENSORS) and all(found[name].equal(tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    save_safetensors(tmp_path / "b.safetensors", {"t": TENSORS["wide.weight"].transpose(0, 2)}, torch.float16)
    assert load_file(tmp_path / "b.safetensors")["t"].equal(TENSORS["wide.weight"].transpose(0, 2).half())


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_round_trips(tmp_path: Path, name: str) -> None:
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(DTYPES[name])
    save_safetensors(tmp_path / "a.safetensors", {"t": tensor})
    found = open_checkpoint(tmp_path / "a.safetensors").get_tensor("t")
    assert found.dtype == tensor.dtype and found.float().equal(tensor.float())


def test_conversion_in_blocks_equals_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 64)
    tensor = torch.randn(7, 13, generator=torch.Generator().manual_seed(0))
    save_file({"t": tensor, "ids": TENSORS["ids"], "scalar": TENSORS["scalar"]}, tmp_path / "a.safetensors")
    weights = open_checkpoint(tmp_path / "a.safetensors")
    assert weights.get_tensor("t", torch.bfloat16).equal(tensor.bfloat16())
    assert weights.get_tensor("scalar", torch.float32).equal(torch.tensor(2.5))
    assert weights.get_tensor("ids", torch.float16).dtype == torch.int64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no whole safetensors file"),
        (b"\x07" * 7, "7 bytes are no whole safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "10 bytes are no whole safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "damaged safetensors header"),
        (struct.pack("<Q", 2) + b"{x", "damaged safetensors header"),
        (struct.pack("<Q", 2) + b"\xff\xff", "damaged safetensors header"),
        (struct.pack("<Q", 12) + b'{"a":1,"a":1}'[:12], "damaged safetensors header"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":1}', "header .*an object where 'a' is there twice"),
        (struct.pack("<Q", 25) + b'{"a": {"shape":1,"shape":1}}'[:25], "damaged safetensors header"),
        (
            struct.pack("<Q", 28) + b'{"a": {"shape":1,"shape":1}}',
            "a is described by .* 'shape' is there twice, expected",
        ),
        (struct.pack("<Q", 4) + "{}".encode("utf-16-le"), "damaged safetensors header"),
        (header({"__metadata__": {"a": 1}}), "other things than texts in __metadata__"),
        (header({"__metadata__": []}), "other things than texts in __metadata__"),
        (header({"a": []}), r"a is described by \[\], expected data_offsets, dtype, shape"),
        (header({"a": {"dtype": "F32"}}), "a is described by {'dtype': 'F32'}, expected"),
        (header({"a": entry() | {"more": 1}}, b"1234"), "a is described by .*more.*, expected"),
        (header({"a\nb": entry()}, b"1234"), r"found the name 'a\\nb', expected at most 1000 plain characters"),
        (header({"\ud800": entry()}, b"1234"), r"found the name '\\ud800'"),
        (header({"x" * 1001: entry()}, b"1234"), r"found the name 'xxx.*\.\.\..*x'"),
        (header({"a": entry([])}, b"1234"), r"a has type \[\], expected"),
        (header({"a": entry("Q4")}, b"1234"), "a has type 'Q4', expected one of F64"),
        (header({"a": entry(shape=(1.0,))}, b"1234"), r"a has shape \[1.0\] .*expected lists of whole numbers"),
        (header({"a": entry(shape=(True,))}, b"1234"), r"a has shape \[True\]"),
        (header({"a": entry(shape=(1e400,))}, b"1234"), r"a has shape \[inf\]"),
        (header({"a": entry(shape=(2**60,))}, b"1234"), r"a has shape"),
        (header({"a": entry(shape=[1] * 65)}, b"1234"), r"a has shape \[1, 1"),
        (header({"a": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}), r"a of shape \(0, .*does not fill its 0 bytes"),
        (header({"a": entry(offsets=(0, 4, 4))}, b"1234"), r"a has .* bytes \[0, 4, 4\]"),
        (header({"a": entry()}, b"123"), "cut short: 72 bytes, its header promises 73"),
        (header({"a": entry()}, b"12345"), "too long: 74 bytes, its header promises 73"),
        (header({"a": entry(shape=(2,))}, b"1234"), r"a of shape \(2,\) does not fill its 4 bytes"),
        (header({"a": entry(shape=(-1, -1))}, b"1234"), r"a has shape \[-1, -1\]"),
        (header({"a": entry(offsets=(4, 8))}, b"12345678"), "a begins at byte .*expected"),
        (header({"a": entry(), "b": entry()}, b"1234"), "b begins at byte .*expected"),
        (header({"a": entry(offsets=(-4, 0))}, b"1234"), r"a has shape \[1\] and bytes \[-4, 0\]"),
        (header({"a": entry("F4")}, b"1234"), "a has type 'F4'"),
        (b"[" * 200_000, "no whole safetensors file"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "damaged safetensors header"),
        (b"PK\x03\x04" + b"\0" * 40, "not opened, since it is a pickle.*allow_pickle=True"),
    ],
)
def test_damage_is_one_named_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(tmp_path / "a.safetensors")
    assert str(tmp_path / "a.safetensors") in str(error.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_mutation_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    save_file(TENSORS, path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        weights = open_checkpoint(path)
        for name in weights.keys():
            weights.get_tensor(name)
    except CheckpointError as error:
        assert "mutated.safetensors" in str(error)


def test_a_file_cut_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    weights = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"a.safetensors: .* cannot be read \(the file ends early\)"):
        [weights.get_tensor(name) for name in weights.keys()]
    path.unlink()
    with pytest.raises(CheckpointError, match="ids cannot be read"):
        weights.get_tensor("ids")


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match=r"pipe.safetensors: found a pipe or device, expected a file of weights"):
        open_checkpoint(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: found a folder, expected a file of weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"absent: cannot be read .No such file"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"a\\x00b': not the name of a file"):
        open_checkpoint(tmp_path / "a\0b")


def test_content_decides_what_a_file_is(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.ckpt")
    assert set(open_checkpoint(tmp_path / "a.ckpt").keys()) == set(TENSORS)
    torch.save(TENSORS, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: not opened, since it is a pickle"):
        open_checkpoint(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: a pickle under the name of safetensors; .* name it"):
        open_checkpoint(tmp_path / "b.safetensors", allow_pickle=True)
    path = (tmp_path / "b.safetensors").rename(tmp_path / "b")
    assert set(open_checkpoint(path, allow_pickle=True).keys()) == set(TENSORS)


def test_metadata_are_the_files_own_words(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt", "title": "ä"})
    assert open_checkpoint(tmp_path / "a.safetensors").metadata == {"format": "pt", "title": "ä"}
    for name in ("model-1", "model-2"):
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors", {"format": "pt", "part": name})
    places = {name: f"{name}.safetensors" for name in ("model-1", "model-2")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert open_weights(tmp_path).metadata == {"format": "pt"}  # what the shards agree about


def test_a_weight_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    save_file({"a": torch.zeros(1), "b": torch.ones(2)}, folder / "model-2.safetensors")
    with pytest.raises(CheckpointError, match="the index and the shards disagree about a"):
        open_weights(folder)


def test_blocks_are_the_whole_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 16)
    save_file(TENSORS, tmp_path / "a.safetensors")
    weights = open_checkpoint(tmp_path / "a.safetensors")
    for name, tensor in TENSORS.items():
        assert torch.cat(
            [torch.zeros(0, dtype=tensor.dtype), *(block.clone() for block in weights.iter_blocks(name))]
        ).equal(tensor.reshape(-1))


def test_old_pickled_weights_are_found_where_they_are_allowed(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"found only pytorch_model.bin, pickles.*allow_pickle=True.*convert"):
        open_weights(tmp_path)
    assert open_weights(tmp_path, "model", allow_pickle=True).get_tensor("a").equal(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"no weights of variant 'fp16'; found only .*pytorch_model.fp16.bin"):
        open_weights(tmp_path, "model", "fp16", allow_pickle=True)


def sharded(folder: Path, places: dict[str, Any]) -> Path:
    save_file({"a": torch.ones(1)}, folder / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, folder / "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_shards_read_as_one(tmp_path: Path) -> None:
    weights = open_weights(sharded(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"}))
    assert set(weights.keys()) == {"a", "b"} and weights.get_tensor("b").equal(torch.ones(2))
    assert weights.path.name == "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        ".x.safetensors",
        "model.bin",
        "a\0.safetensors",
        "",
    ],
)
def test_shard_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path.parent / "x.safetensors")
    with pytest.raises(CheckpointError, match="is not the name of a safetensors file in the same folder"):
        open_weights(sharded(tmp_path, {"a": name}))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "model-1.safetensors", "b": "model-3.safetensors"}, "model-3.safetensors: this shard is missing"),
        ({"a": "model-1.safetensors"}, None),
        ({"a": "model-1.safetensors", "c": "model-2.safetensors"}, "the index and the shards disagree about b, c"),
        ({"a": "model-2.safetensors", "b": "model-1.safetensors"}, "the index and the shards disagree about a, b"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"a": 3}, "shard '3' is not the name"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, places: Any, message: str | None) -> None:
    folder = sharded(tmp_path, places)
    if message is None:  # a file beside the shards that the index does not list is no part of the model
        assert open_weights(folder).keys() == ("a",)
        return
    with pytest.raises(CheckpointError, match=message):
        open_weights(folder)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights; expected diffusion_pytorch_model.safetensors or model.saf"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"no weights of variant 'fp16'; expected .*fp16.safetensors"):
        open_weights(tmp_path, variant="fp16")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found only model.ckpt"):
        open_weights(tmp_path)
