"""What is chosen follows from the hardware, and is said with its reason."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from enlarger.errors import InputError
from enlarger.runtime import choices, cores, hardware
from enlarger.runtime.choices import choose, resolve_device, resolve_dtype
from enlarger.runtime.cores import count_cores, heed_quota
from enlarger.runtime.hardware import Hardware
from enlarger.tasks.text_to_image import load_generator
from enlarger.tasks.upscale.upscale import load_upscaler
from tests.support import tiny

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = Hardware(cores=2)


def play(monkeypatch: pytest.MonkeyPatch, machine: Hardware) -> None:
    monkeypatch.setattr(choices, "hardware", lambda: machine)


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_that_multiplies_bfloat16_gets_it(monkeypatch: pytest.MonkeyPatch, instructions: str) -> None:
    play(monkeypatch, Hardware(bfloat16=instructions, cores=8))
    chosen = choose()
    assert (chosen.device, chosen.dtype, chosen.memory_format) == (CPU, torch.bfloat16, torch.channels_last)
    assert chosen.describe()["precision"] == f"bfloat16: this CPU multiplies it ({instructions})"
    assert chosen.describe()["layout"] == "channels-last: convolutions in bfloat16 are faster in it"
    assert resolve_dtype("auto", CPU) == torch.bfloat16


def test_other_cpus_get_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, PLAIN)
    assert choose().dtype == torch.float32 == resolve_dtype("auto", CPU)
    reason = "float32: this CPU has neither avx512_bf16 nor amx_bf16, without which bfloat16 is slow"
    assert choose().describe()["precision"] == reason
    assert choose().describe()["layout"] == "contiguous: in float32 diffusion networks are not faster otherwise"


@pytest.mark.parametrize("instructions", [None, "avx512_bf16"])
def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, instructions: str | None) -> None:
    play(monkeypatch, Hardware(bfloat16=instructions))
    for name in ("float32", "float16", "bfloat16"):
        chosen = choose("cpu", name)
        assert chosen.dtype == getattr(torch, name) == resolve_dtype(name, CPU)
        assert chosen.describe()["precision"] == f"{name}: asked for"
        assert chosen.describe()["device"] == "cpu: asked for"


def test_accelerators_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Hardware("cuda", "avx512_bf16", 4))
    chosen = choose()
    assert chosen.describe()["device"] == "cuda: the first accelerator"
    assert chosen.describe()["precision"] == "float16: half the memory, and fast on CUDA"
    play(monkeypatch, Hardware("mps"))
    chosen = choose()
    assert chosen.describe()["precision"] == "float32: the precision that is known to work on mps"
    assert chosen.describe()["layout"] == "contiguous: the usual one"


def test_threads_are_cores_unless_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Hardware(cores=6))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose().threads == 6
    assert choose().describe()["threads"] == "6: one per core that this process may use"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose().describe()["threads"] == "3: OMP_NUM_THREADS says so"
    for strange in ("", "0", "6", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", strange)
        assert choose().describe()["threads"] == "6: one per core that this process may use"


def test_every_choice_has_a_reason() -> None:
    described = choose().describe()
    assert list(described) == ["device", "precision", "layout", "threads"]
    assert all(value and reason for value, _, reason in (text.partition(": ") for text in described.values()))


def test_cores_are_counted_once_however_many_threads_they_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    siblings = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2"}
    for cpu, text in siblings.items():
        (tmp_path / str(cpu)).write_text(text)
    monkeypatch.setattr(cores, "TOPOLOGY", str(tmp_path / "{}"))
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {*siblings, 7}, raising=False)  # 7 is not listed
    assert count_cores() == 4
    for share, expected in (("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", 4), ("", 4)):
        (tmp_path / "cpu.max").write_text(share)
        assert count_cores() == expected
    (tmp_path / "cpu.max").write_text("900000 100000")
    assert count_cores() == 4
    monkeypatch.delattr(cores.os, "sched_getaffinity")
    monkeypatch.setattr(cores.os, "cpu_count", lambda: None)
    assert count_cores() == 1


def test_a_containers_share_bounds_the_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    for share, stated, expected in (
        ("100000 100000", None, "1"),
        ("100000 100000", "5", "5"),
        ("max 100000", None, None),
    ):
        (tmp_path / "cpu.max").write_text(share)
        with monkeypatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", stated or "")
            if stated is None:
                patch.delenv("OMP_NUM_THREADS")
            heed_quota()
            assert os.environ.get("OMP_NUM_THREADS") == expected


@pytest.mark.parametrize(
    ("level", "capabilities", "expected"),
    [
        ("AVX512", {"avx512_bf16": True}, "avx512_bf16"),
        ("AVX512", {"avx512_bf16": True, "amx_bf16": True}, "amx_bf16"),
        ("AVX512", {"avx512_f": True, "amx_bf16": False}, None),
        ("AVX2", {"avx512_bf16": True}, None),
        ("DEFAULT", {}, None),
    ],
)
def test_instructions_are_those_that_torch_may_use(
    monkeypatch: pytest.MonkeyPatch, level: str, capabilities: dict[str, bool], expected: str | None
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    hardware.hardware.cache_clear()
    try:
        assert hardware.hardware().bfloat16 == expected
    finally:
        hardware.hardware.cache_clear()


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match=r"^no device is called 'gpu'; expected auto, cpu, cuda, cuda:0, mps ...$"):
        resolve_device("gpu")
    with pytest.raises(InputError, match=r"^device 'cuda:99' cannot be used here; give another, or auto$"):
        resolve_device("cuda:99")
    with pytest.raises(InputError, match=r"^device 'meta' cannot be used here; give another, or auto$"):
        resolve_device("meta")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, PLAIN)
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", CUDA) == torch.float16
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(InputError, match=r"^precision is 'half', expected auto, float32, float16, bfloat16$"):
        resolve_dtype("half", CPU)
    with pytest.raises(InputError, match=r"^precision is 'half', expected auto, float32, float16, bfloat16$"):
        choose("cpu", "half")


def psnr(found: Image.Image, expected: Image.Image) -> float:
    """Of pixels of 0 to 255, in dB."""
    error = np.square(np.array(found, dtype=np.float64) - np.array(expected)).mean()
    return float("inf") if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_picture_in_bfloat16_is_nearly_that_in_float32(seed: int) -> None:
    made = [
        load_generator(tiny.sd1_folder(), "cpu", precision)("a boat", width=64, height=48, steps=4, seed=seed).image
        for precision in ("float32", "bfloat16")
    ]
    assert psnr(made[1], made[0]) >= 30
    enlarged = [
        load_upscaler(tiny.x2_folder(), "cpu", precision)(tiny.picture(64, 64), steps=4, seed=seed).image
        for precision in ("float32", "bfloat16")
    ]
    assert psnr(enlarged[1], enlarged[0]) >= 30


def test_the_layout_changes_a_picture_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = list[Image.Image]()
    for layout in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr(choices, "choose_layout", lambda device, dtype, layout=layout: (layout, "played"))
        model = load_generator(tiny.sd1_folder(), "cpu", "float32")
        assert model.model.latent_diffusion.runtime.memory_format == layout
        pictures.append(model("a boat", width=64, height=48, steps=4, seed=3).image)
    assert np.abs(np.array(pictures[0], dtype=int) - np.array(pictures[1])).max() <= 1
