"""`enlarger train` as it is called, in one process and in two."""

import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from enlarger.checkpoint.folder.load import read_folder
from enlarger.train.options import DataSettings, LoraSettings, LossOptions, SampleOptions, TrainOptions
from tests.support import command
from tests.support.close import max_difference
from tests.support.training import base_folder, pictures

ROOT = Path(__file__).parents[2]
PLACES = ("--model", "m", "--data", "d", "--out", "o")

fake, call = pytest.fixture(command.fake), pytest.fixture(command.call)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[TrainOptions]:
    """What the command asks for, in the place of a training."""
    asked: list[TrainOptions] = []

    def train(options: TrainOptions, watch: Any) -> Path:
        asked.append(options)
        return options.out

    monkeypatch.setattr("enlarger.train.run.train", train)
    return asked


@pytest.mark.parametrize("task", ["text-to-image", "lora", "inpainting", "depth", "upscaler-x4", "upscaler-x2"])
def test_the_defaults_are_those_of_the_options(call: Any, given: list[TrainOptions], task: Any) -> None:
    assert call("train", task, *PLACES)[:2] == (0, "o\n")
    assert given == [TrainOptions(task, "m", "d", Path("o"))]


def test_each_option_arrives(call: Any, given: list[TrainOptions]) -> None:
    more = (
        "--steps 7 --batch 2 --rate 0.01 --resolution 64 --seed 3 --resume --warmup 4 --accumulate 5 --average 0.9 "
        "--weight-decay 0 --device cpu --precision bfloat16 --save-every 1 --offset-noise 0.1 --snr-gamma 5 "
        "--text-dropout 0 --no-buckets --center-crop --random-flip --caption c --caption-column t --sample-every 2 "
        "--sample-prompt a --sample-prompt b --sample-steps 3 --sample-guidance 1 --rank 8 --alpha 4 --target to_q "
        "--target to_v --lora-layout kohya --tracker tensorboard"
    )
    assert call("train", "lora", *PLACES, *more.split())[0] == 0
    expected = TrainOptions(
        "lora", "m", "d", Path("o"), 7, 2, 0.01, 64, 3, True, 4, 5, 0.9, 0.0, "cpu", "bfloat16", 1.0,
        LossOptions(offset_noise=0.1, snr_gamma=5.0, text_dropout=0.0), DataSettings(False, True, True, "c", "t"),
        SampleOptions(2, ("a", "b"), 3, 1.0), LoraSettings(8, 4.0, ("to_q", "to_v")),
        lora_layout="kohya", tracker="tensorboard",
    )  # fmt: skip
    assert given == [expected]
    assert (
        call("train", "depth", *PLACES, "--estimator", "e", "--prediction", "v_prediction", "--zero-terminal-snr")[0]
        == 0
    )
    loss = LossOptions("v_prediction", zero_terminal_snr=True)
    assert given[1] == TrainOptions("depth", "m", "d", Path("o"), loss=loss, estimator=Path("e"))
    assert call("train", "upscaler-x4", *PLACES, "--max-noise-level", "100")[0] == 0
    assert given[2].loss == LossOptions(max_noise_level=100.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lora", "--model", "m"), "Missing option '--data'"),
        (("lora", *PLACES, "--prediction", "epsilon"), "No such option: --prediction"),
        (("upscaler-x2", *PLACES, "--snr-gamma", "5"), "No such option: --snr-gamma"),
        (("inpainting", *PLACES, "--rank", "5"), "No such option: --rank"),
        (("depth", *PLACES, "--text-dropout", "2"), "--text-dropout"),
    ],
    ids=["places", "lora", "x2", "inpainting", "range"],
)  # fmt: skip
def test_options_that_mean_nothing_to_a_task(call: Any, given: Any, arguments: tuple[str, ...], said: str) -> None:
    status, _, err = call("train", *arguments)
    assert status == 2 and said in " ".join(err.split()) and given == []


def start(places: tuple[Path, Path, Path], batch: int, **variables: str) -> subprocess.Popen[str]:
    """The command in a process, with variables such as `accelerate launch` sets."""
    named = zip(("--model", "--data", "--out"), map(str, places), strict=True)
    options = f"--steps 20 --batch {batch} --resolution 32 --warmup 5 --device cpu --rate 1e-4"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    arguments = ("train", "text-to-image", *chain.from_iterable(named), *options.split())
    command = [sys.executable, "-W", "ignore", "-m", "enlarger", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def launch_variables(rank: int, port: int) -> dict[str, str]:
    """Of the process `rank` of two on this machine."""
    processes = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return processes | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model, data = base_folder(tmp_path), pictures(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = [start((model, data, tmp_path / "two"), 1, **launch_variables(rank, port)) for rank in (0, 1)]
    alone = start((model, data, tmp_path / "one"), 2)
    for process in (*both, alone):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    a, b = (read_folder(tmp_path / name).components["unet"].state_dict() for name in ("one", "two"))
    assert max(max_difference(a[name], b[name]) for name in a) <= 1e-5
    moved = read_folder(model).components["unet"].state_dict()
    assert max(max_difference(a[name], moved[name]) for name in a) > 5e-4
    assert "x 2 processes" in (tmp_path / "two" / "README.md").read_text()
