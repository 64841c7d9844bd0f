"""Files made to do harm or damaged in any way end in one typed error, and nothing that they hold runs."""

import ast
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from enlarger.checkpoint.components import COMPONENT_CLASSES
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.tensors import open as weights_opening
from enlarger.checkpoint.tensors import pickle_guard, safetensors_file
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.errors import CheckpointError, EnlargerError
from enlarger.strict_json import read_json
from tests.support import hostile

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
BOMBS = hostile.bombs()
MUTATIONS = int(os.environ.get("TEST_MUTATIONS", "400"))
TENSORS = {
    "conv_in.weight": torch.linspace(-1, 1, 24).reshape(2, 3, 4),
    "conv_in.bias": torch.arange(7, dtype=torch.float16),
    "ids": torch.arange(5),
    "empty": torch.zeros(0, 3),
}
UNGUARDED = """
import pickle, sys
for path in sys.argv[1:]:
    try:
        pickle.load(open(path, "rb"))
    except BaseException:
        pass
"""
Mutation = Callable[[random.Random, dict[str, Any], bytes], bytes]


def packed(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def cut(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    whole = packed(header, data)
    return whole[: rng.randrange(len(whole))]


def longer(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    return packed(header, data + rng.randbytes(rng.randint(1, 99)))


def false_length(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    true = len(json.dumps(header))
    return packed(header, data, rng.choice([0, 1, 7, true - 1, true + 1, 10**8, 2**31, 2**63, 2**64 - 1]))


def moved(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    """Overlaps and holes."""
    offsets = header[rng.choice(list(TENSORS))]["data_offsets"]
    shift = rng.choice([-8, -4, -1, 1, 2, 4, 8, 2**40])
    for side in rng.choice([(0,), (1,), (0, 1)]):
        offsets[side] += shift
    return packed(header, data)


def misshapen(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    entry = header[rng.choice(list(TENSORS))]
    odd = [-1, 0, 3, 2**31, 2**63, 2**64, 10**400, 1.0, 1e400, True, None, "2", [2], {}]
    entry["shape"] = rng.choice(
        [[rng.choice(odd)], [*entry["shape"], rng.choice(odd)], [1] * 10_000, None, "ab", {}, 3]
    )
    return packed(header, data)


def strange_values(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    odd = [
        None,
        True,
        -1,
        1e400,
        float("nan"),
        "",
        "F32",
        "F99",
        [],
        [[]],
        [0],
        [0, 4, 8],
        ["0", "4"],
        {},
        {"a": 1},
        10**300,
    ]
    place = rng.choice([header, header[rng.choice(list(TENSORS))], header["__metadata__"]])
    place[rng.choice([*place, "dtype", "more", "__metadata__"])] = rng.choice(odd)
    return packed(header, data)


def twice(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    """A key that is there twice, of the header or inside an entry."""
    text, key = json.dumps(header), rng.choice([*TENSORS, "__metadata__", "dtype", "shape", "data_offsets"])
    at = text.index(f'"{key}"')
    value = json.dumps(header.get(key, rng.choice(["F32", [1], [0, 4]])))
    return packed(f'{text[:at]}"{key}": {value}, {text[at:]}'.encode(), data)


def odd_name(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    name = rng.choice(["", "../../x", "a\nb", "\x1b[31m", "a\0", "\ud800", "x" * 5000, "é", "__metadata__ ", "‮abc"])
    header[name] = header.pop(rng.choice(list(TENSORS)))
    return packed(header, data)


def deep(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    depth, (left, right) = rng.choice([500, 5_000, 50_000]), rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return packed(b'{"a": ' + left * depth + b"1" + right * depth + b"}", data)


def no_text(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header)
    broken = bytearray(text.encode())
    broken[rng.randrange(len(broken))] = rng.choice([0, 0x80, 0xC0, 0xFF])
    return packed(rng.choice([text.encode("utf-16"), text.encode("utf-8-sig"), bytes(broken)]), data)


def flipped(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    whole = bytearray(packed(header, data))
    for _ in range(rng.randint(1, 6)):
        whole[rng.randrange(len(whole) if rng.random() < 0.3 else len(whole) - len(data))] = rng.randrange(256)
    return bytes(whole)


def cut_and_joined(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    whole = packed(header, data)
    begin, end = sorted(rng.choices(range(len(whole)), k=2))
    return whole[:begin] + rng.choice([b"", whole[begin:end] * 2, rng.randbytes(end - begin)]) + whole[end:]


DAMAGES: tuple[Mutation, ...] = (
    cut, longer, false_length, moved, misshapen, strange_values, twice, odd_name, deep, no_text, flipped,
    cut_and_joined,
)  # fmt: skip


def mutated(seed: int) -> bytes:
    rng = random.Random(seed)
    whole = save(TENSORS, {"format": "pt"})
    length = int.from_bytes(whole[:8], "little")
    return DAMAGES[seed % len(DAMAGES)](rng, json.loads(whole[8 : 8 + length]), whole[8 + length :])


def test_no_mutation_of_a_safetensors_file_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "mutated.safetensors"
    refused = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(seed))
        try:
            weights = open_checkpoint(path)
            for name in weights.keys():
                assert weights.get_tensor(name).shape == weights.shape(name), seed
        except CheckpointError as error:
            assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 2000, seed
            refused += 1
    assert refused > 0.8 * MUTATIONS  # bits of the numbers, and some names, may change without harm


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that must not appear."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def test_the_programs_do_run_where_nothing_guards(tmp_path: Path) -> None:
    """Without this, the tests below would prove nothing."""
    labels = list(hostile.programs("CANARY"))
    for count, label in enumerate(labels):
        (tmp_path / f"program{count}").write_bytes(hostile.programs(str(tmp_path / f"canary{count}"))[label])
    paths = [str(tmp_path / f"program{count}") for count in range(len(labels))]
    run = [sys.executable, "-W", "ignore", "-c", UNGUARDED, *paths]
    subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
    silent = [label for count, label in enumerate(labels) if not (tmp_path / f"canary{count}").exists()]
    assert silent == [] and len(labels) >= 20


@pytest.mark.parametrize("label", hostile.programs("CANARY"))
def test_no_program_runs(tmp_path: Path, canary: Path, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(hostile.with_program(hostile.programs(str(canary))[label]))
    with pytest.raises(CheckpointError, match=r"model\.ckpt: not opened, since it is a pickle.*allow_pickle=True"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"model\.ckpt: refused, and nothing in it has run: its program"):
        open_checkpoint(path, allow_pickle=True)
    monkeypatch.setattr(pickle_guard, "check_opcodes", lambda *_: frozenset())  # the second gate alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about protocols
        with pytest.raises(CheckpointError, match="torch's restricted reader does not take it"):
            open_checkpoint(path, allow_pickle=True)


@pytest.mark.parametrize("ending", ["ckpt", "pt", "safetensors"])
@pytest.mark.parametrize("label", hostile.containers(b"\x80\x02N."))
def test_no_hiding_place_helps(tmp_path: Path, canary: Path, label: str, ending: str) -> None:
    path = tmp_path / f"model.{ending}"
    path.write_bytes(hostile.containers(hostile.programs(str(canary))["os.system"])[label])
    with pytest.raises(CheckpointError, match=rf"model\.{ending}: "):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=rf"model\.{ending}: "):
        open_checkpoint(path, allow_pickle=True)


def test_the_same_files_without_a_hostile_program_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    good = hostile.benign()
    for harmless in (hostile.zipped(good), hostile.zipped(good | {"data/9": hostile.zipped(good)})):
        path.write_bytes(harmless)
        assert open_checkpoint(path, allow_pickle=True).keys() == ("a", "b")


def test_pickles_are_not_read_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(hostile.zipped(hostile.benign()))
    monkeypatch.setattr(weights_opening, "open_pickle", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(safetensors_file, "_read_header", lambda *_: pytest.fail("opened"))
    with pytest.raises(CheckpointError, match="not opened, since it is a pickle"):
        open_checkpoint(path)


def test_no_other_way_to_unpickle_stands_in_the_package() -> None:
    """`torch.load` behind the guard alone, with `weights_only`, and nothing that runs pickles or code of a model."""
    guard = Path(pickle_guard.__file__)
    allowed = {guard}
    for path in sorted(Path(safetensors_file.__file__).parents[2].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                said = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert called != "torch.load" or (path in allowed and said.get("weights_only") == "True"), path
                if called != "torch.jit.trace":  # reads no file
                    assert called.rpartition(".")[0] not in {"pickle", "torch.jit", "torch.hub", "torch.export"}, path
                assert "trust_remote_code" not in said, path


@pytest.mark.parametrize("label", BOMBS)
def test_bombs_are_refused_before_they_are_read(tmp_path: Path, label: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(BOMBS[label])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="refused, and nothing in it has run: "):
            open_checkpoint(path, allow_pickle=True)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


# Whatever stands in a JSON file beside the weights.


STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -0.5, 1e400, float("nan"), "", "x", "../../etc/passwd",
    "\ud800", "a\0b", "é" * 1000, [], [[]], [None], [1], ["x"], [1] * 5000, {}, {"a": {}}, {"_class_name": "X"},
    ["diffusers", "UNet2DConditionModel"], ["os", "system"], [None, None],
)  # fmt: skip


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def strange(rng: random.Random, config: dict[str, Any]) -> dict[str, Any]:
    """A config with one to three strange values, some of them deep inside."""
    config = json.loads(json.dumps(config))
    for _ in range(rng.randint(1, 3)):
        place: Any = config
        key = rng.choice([*config, "more"])
        if isinstance(config.get(key), list) and config[key] and rng.random() < 0.5:
            place, key = config[key], rng.randrange(len(config[key]))
        place[key] = deepcopy(rng.choice([*STRANGE, nested(50)]))
    return config


def configs() -> list[tuple[Callable[[Any], Any], dict[str, Any]]]:
    """All official configs with their readers."""
    found: list[tuple[Callable[[Any], Any], dict[str, Any]]] = []
    for path in sorted(CONFIGS.glob("*/*.json")):
        config = json.loads(path.read_text())
        kind = config.get("_class_name") or (config.get("architectures") or ["none"])[0]
        if kind in COMPONENT_CLASSES:
            found.append((COMPONENT_CLASSES[kind].read_config, config))
        elif path.name.startswith("scheduler"):
            found.append((sampler_from_config, config))
    return found


def test_no_strange_config_escapes_as_another_error() -> None:
    rng, known, refused = random.Random(0), configs(), 0
    for count in range(500):
        read, config = rng.choice(known)
        try:
            read(strange(rng, config))
        except EnlargerError as error:
            assert len(str(error)) < 1000 and str(error).isprintable(), count
            refused += 1
    assert refused > 300


def test_no_strange_index_escapes_as_another_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    indexes = [json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*/model_index.json"))]
    for count in range(100):
        (tmp_path / "model_index.json").write_text(json.dumps(strange(rng, rng.choice(indexes))))
        with pytest.raises(EnlargerError) as error:
            read_folder(tmp_path)
        assert str(error.value).isprintable(), count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a":' * 100_000, "not valid JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "not valid JSON .'a' is there twice"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("3", "found a JSON int, expected an object"),
        ('{"a": "\xff"}', "not valid JSON"),
    ],
)
def test_what_is_no_json_object(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        read_json(tmp_path / "config.json")


def test_only_ordinary_files_of_json_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="found no file, or one of 0 bytes, expected a file of JSON"):
        read_json(tmp_path / "config.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(CheckpointError, match="or one of 68,157,440 bytes"):
        read_json(tmp_path / "large.json")
