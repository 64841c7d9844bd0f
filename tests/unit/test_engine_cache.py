"""What the engine OpenVINO keeps: made once for what is in a network, whole or not there, and bounded."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.runtime.engines import entries as entries_module
from enlarger.runtime.engines import openvino_api
from enlarger.runtime.engines.entries import CONTENTS, UNFINISHED, DamagedEntry, Entries
from enlarger.runtime.engines.named import EngineOptions, make_engine
from enlarger.runtime.engines.network_digest import NetworkDigests, network_digest
from tests.support.random_weights import normal, randomise

PICTURE = normal(1, 3, 8, 8)
CPU = torch.device("cpu")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that were converted."""
    converted, convert = list[nn.Module](), openvino_api.convert

    def counted(network: nn.Module, *rest: Any) -> Any:
        converted.append(network)
        return convert(network, *rest)

    monkeypatch.setattr(openvino_api, "convert", counted)
    return converted


def net() -> UpscaleNet:
    return randomise(UpscaleNet(UpscaleNetConfig(4, 1)))


def compute(network: nn.Module, cache: Path, picture: Tensor = PICTURE) -> Tensor:
    """With an engine of its own, as another process has it."""
    engine = make_engine("openvino", EngineOptions(CPU, "float32", "none", cache))
    with torch.inference_mode(), engine.prepare(network) as call:
        return call(picture)


def entries_of(cache: Path) -> list[Path]:
    return sorted((cache / "openvino").iterdir())


def test_a_second_load_converts_nothing(conversions: list[nn.Module], tmp_path: Path) -> None:
    first, second = compute(net(), tmp_path), compute(net(), tmp_path)
    assert len(conversions) == 1 and first.equal(second)
    compute(net(), tmp_path, normal(2, 3, 16, 8))  # nor does another size
    assert len(conversions) == 1 and len(entries_of(tmp_path)) == 1


def test_other_weights_are_another_entry(conversions: list[nn.Module], tmp_path: Path) -> None:
    network = net()
    engine = make_engine("openvino", EngineOptions(CPU, "float32", "none", tmp_path))

    def result() -> Tensor:
        with torch.inference_mode(), engine.prepare(network) as call:
            return call(PICTURE)

    before = result()
    assert before.equal(result()) and len(conversions) == 1
    with torch.no_grad():
        network.head.weight[0, 0, 0, 0] += 1
    assert not before.equal(result()) and len(conversions) == 2
    with torch.no_grad():
        network.head.weight[0, 0, 0, 0] -= 1
    network.blocks[0] = nn.Identity()
    result()
    assert len(entries_of(tmp_path)) == len(conversions) == 3


@pytest.mark.parametrize("damage", ["cut", "changed", "no list", "a list of nothing", "no graph"])
def test_a_damaged_entry_is_made_again(damage: str, conversions: list[nn.Module], tmp_path: Path) -> None:
    expected, (entry,) = compute(net(), tmp_path), entries_of(tmp_path)
    weights, graph, contents = entry / "graph.bin", entry / "graph.xml", entry / CONTENTS
    if damage == "cut":
        os.truncate(weights, 10)
    elif damage == "changed":
        weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    elif damage == "no list":
        contents.unlink()
    elif damage == "a list of nothing":
        contents.write_text("{}")
        graph.write_text("no graph")
    else:
        graph.unlink()
    with pytest.warns(UserWarning, match=r"^the engine's cache is damaged \(.*\): the network is converted again$"):
        assert compute(net(), tmp_path).equal(expected)
    assert len(conversions) == 2
    compute(net(), tmp_path)
    assert len(conversions) == 2


def test_what_is_half_written_is_never_used(conversions: list[nn.Module], tmp_path: Path) -> None:
    """Nor is what another layout of entries left, or a failed write; and a run does not fail for want of a cache."""
    half = tmp_path / "openvino" / f"{UNFINISHED}x"
    half.mkdir(parents=True)
    (half / "graph.xml").write_text("<net")
    compute(net(), tmp_path)
    assert len(conversions) == 1 and len(entries_of(tmp_path)) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match=r"^the engine's cache .* cannot be written"):
        assert compute(net(), blocked).equal(compute(net(), tmp_path))


def test_the_bound(tmp_path: Path) -> None:
    """What was not used for longest goes; the newest stays, whatever its size; so go what killed processes left."""
    entries = Entries(tmp_path, most_bytes=3000)

    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"1" * 1000)

    for age, key in enumerate(("a", "b")):
        os.utime(entries.add(key, write), (age, age))
    assert entries.find("a") == tmp_path / "a"  # used now
    left = tmp_path / f"{UNFINISHED}old"
    left.mkdir()
    os.utime(left, (0, 0))
    entries.add("c", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    Entries(tmp_path, most_bytes=10).add("d", write)
    assert [path.name for path in tmp_path.iterdir()] == ["d"] and entries.find("a") is None


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"1")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        Entries(tmp_path).add("a", write)
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_is_faster_wins(tmp_path: Path) -> None:
    entries = Entries(tmp_path)

    def write(folder: Path) -> None:
        if not (tmp_path / "a").exists():
            entries.add("a", lambda other: (other / "weights").write_bytes(b"first") and None)
        (folder / "weights").write_bytes(b"second")

    assert (entries.add("a", write) / "weights").read_bytes() == b"first"
    (tmp_path / "a" / CONTENTS).write_text(json.dumps({"weights": "0"}))
    with pytest.raises(DamagedEntry, match=r"a: its files are not as they were written$"):
        entries.find("a")
    assert entries.find("a") is None


def test_digests() -> None:
    """Of weights, their types, and the settings of layers; the same wherever it is computed."""
    network, digests = net(), NetworkDigests()
    assert digests(network) == network_digest(net()) != network_digest(net().half())
    network.blocks[0].some_setting = 3
    assert network_digest(network) != network_digest(net())
    grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, stride=2)
    grouped[1].load_state_dict(grouped[0].state_dict())
    assert network_digest(grouped[0]) != network_digest(grouped[1])


def test_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To openvino's makers: what would do it is not loaded, and does nothing where someone else has loaded it."""
    compute(net(), tmp_path)
    assert sys.modules["openvino_telemetry"] is None
    sent = list[object]()
    telemetry = SimpleNamespace(
        Telemetry=type("Telemetry", (), {"send_event": lambda self, *event: sent.append(event)})
    )
    monkeypatch.setitem(sys.modules, "openvino_telemetry", telemetry)
    assert openvino_api.version()
    telemetry.Telemetry().send_event("ovc", "conversion")
    assert not sent


def test_the_bound_is_stated() -> None:
    assert entries_module.MOST_BYTES == 16 * 2**30
