"""Training from the options to the result: how it begins, goes on after it was stopped, refuses, and what it writes."""

import errno
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import enlarger
from enlarger.checkpoint.adapters.lora import apply_lora, read_lora
from enlarger.checkpoint.adapters.lora_key_mapping import sdxl_layer_names
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.cli.train_progress import training_progress
from enlarger.diffusion.schedule import cosine, linear
from enlarger.errors import EnlargerError, InputError, NonFinite, Unsupported
from enlarger.nn.unet import UNet
from enlarger.requests import MAX_SEED
from enlarger.train import result, run
from enlarger.train.data import TrainingBatch
from enlarger.train.devices import choose_devices
from enlarger.train.draws import draws_of_step
from enlarger.train.loop import new_state, train_steps
from enlarger.train.lora import LoraLayer, lora_layers, save_lora, with_lora
from enlarger.train.noising import ScheduledNoise
from enlarger.train.options import LoraSettings, LossOptions, SampleOptions, TrainOptions
from enlarger.train.recipe import Recipe
from enlarger.train.result import LORA_NAME, check_place, write_result
from enlarger.train.run import train
from enlarger.train.start import check_options, start, with_input_channels
from enlarger.train.state import TrainingStopped
from tests.support import tiny
from tests.support.close import assert_close, max_difference
from tests.support.random_weights import normal
from tests.support.tiny_inpaint import inpaint_folder
from tests.support.tiny_models import x2_folder
from tests.support.tiny_x4 import x4_folder
from tests.support.training import asked, base_folder, pictures

CPU = torch.device("cpu")
ZERO_SNR = LossOptions(zero_terminal_snr=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"))


def unet_of(folder: Path) -> Any:
    return read_folder(folder).components["unet"]


def called(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x, torch.tensor([500.0, 20.0]), tokens=normal(2, 7, 32, seed=4))


@pytest.mark.parametrize("channels", [5, 9])
def test_a_child_with_more_channels_begins_as_its_base(base: Path, channels: int) -> None:
    unet = unet_of(base)
    child = with_input_channels(unet, channels)
    more = torch.cat([x := normal(2, 4, 16, 16), normal(2, channels - 4, 16, 16, seed=2)], 1)
    assert max_difference(called(child, more), called(unet, x)) == 0
    assert unet.config.in_channels == 4 and child.conv_in.weight.shape[1] == channels


def test_a_lora_begins_without_effect(base: Path) -> None:
    unet = unet_of(base)
    learner = with_lora(unet, LoraSettings(rank=2), 0)
    x = normal(2, 4, 16, 16)
    assert max_difference(called(learner, x), called(unet, x)) == 0
    learning = [name for name, parameter in learner.named_parameters() if parameter.requires_grad]
    assert learning and all(name.endswith((".down.weight", ".up.weight")) for name in learning)
    assert not any(isinstance(module, LoraLayer) for module in unet.modules())


def test_a_training_writes_a_folder_with_its_card(base: Path, data: Path, tmp_path: Path) -> None:
    seen: list[run.TrainingProgress] = []
    samples = SampleOptions(sample_every=3, sample_prompts=("a red wall", "a blue wall", "x"), sample_steps=2)
    out = train(asked(tmp_path, base, data, average=0.9, samples=samples), seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4] and seen[0].memory > 0
    assert [progress.rate for progress in seen] == [5e-4, 1e-3, 1e-3, 1e-3]
    assert max_difference(unet_of(out).conv_in.weight, unet_of(base).conv_in.weight) > 1e-5
    made = enlarger.load(out, device="cpu")
    assert made(enlarger.GenerateRequest("a red wall", steps=2, width=32, height=32)).image.size == (32, 32)
    card = (out / "README.md").read_text()
    assert "8 pictures with captions from `pictures`" in card and "| averaged weights | decay 0.9 |" in card
    assert "epsilon" in card and str(tmp_path) not in card
    with Image.open(out.with_name("out.work") / "samples" / "step-000003.png") as sheet:
        assert sheet.size == (96, 32)
    logged = [json.loads(line) for line in (out.with_name("out.work") / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == 4 and math.isfinite(logged[-1]["loss"])


class Killed(Exception):
    """What a killed process leaves behind is what this leaves."""


TASKS = {
    "text-to-image": {"average": 0.9, "accumulate": 2},
    "inpainting": {},
    "lora": {"lora": LoraSettings(rank=2), "average": 0.9},
}


@pytest.mark.parametrize("task", list(TASKS))
def test_a_training_that_was_killed_ends_with_the_same_bits(base: Path, data: Path, tmp_path: Path, task: str) -> None:
    options = TASKS[task]

    def killed_after(step: int) -> Any:
        def watch(progress: run.TrainingProgress) -> None:
            if progress.step == step:
                raise Killed

        return watch

    places = [tmp_path / name for name in ("whole", "parts")]
    whole, parts = (asked(place, base, data, task, steps=5, **options) for place in places)
    train(whole)
    for number, step in enumerate((1, 3, 4)):
        with pytest.raises(Killed):
            train(replace(parts, resume=number > 0), killed_after(step))
    train(replace(parts, resume=True))
    files = [place / "out.work" / "state.safetensors" for place in places]
    assert files[0].read_bytes() == files[1].read_bytes()
    results = [sorted(path for path in (place / "out").rglob("*.safetensors")) for place in places]
    assert [a.read_bytes() for a in results[0]] == [b.read_bytes() for b in results[1]] and results[0]


def test_accumulated_batches_are_one_large_batch(base: Path, data: Path, tmp_path: Path) -> None:
    small = train(asked(tmp_path / "small", base, data, batch=1, accumulate=4, rate=1e-4))
    large = train(asked(tmp_path / "large", base, data, batch=4, rate=1e-4))
    a, b = (unet_of(out).state_dict() for out in (small, large))
    assert max(max_difference(a[name], b[name]) for name in a) < 1e-5


def test_in_bfloat16_the_weights_stay_float32(base: Path, data: Path, tmp_path: Path) -> None:
    out = train(asked(tmp_path, base, data, "inpainting", precision="bfloat16", steps=1))
    unet = unet_of(out)
    assert unet.conv_in.weight.shape[1] == 9 and unet.conv_in.weight.dtype == torch.float32
    moved = (unet.conv_in.weight[:, :4] - unet_of(base).conv_in.weight).abs().max()
    assert 1e-4 < float(moved) < 2e-3 and float(unet.conv_in.weight[:, 4:].abs().max()) > 1e-4


def test_a_lora_is_a_file_in_both_layouts(base: Path, data: Path, tmp_path: Path) -> None:
    settings = {"lora": LoraSettings(rank=2, alpha=1.0), "task": "lora", "rate": 1e-2}
    folder = train(asked(tmp_path / "a", base, data, **settings))
    file = tmp_path / "b" / "wall.safetensors"
    train(asked(tmp_path / "b", base, data, lora_layout="kohya", out=file, **settings))
    assert (folder / "README.md").is_file() and "tags" in file.with_suffix(".md").read_text()
    names = [set(open_checkpoint(path).keys()) for path in (folder / LORA_NAME, file)]
    assert any(name.startswith("unet.mid_block.") and name.endswith(".lora_A.weight") for name in names[0])
    assert any(name.startswith("lora_unet_mid_block_") and name.endswith(".alpha") for name in names[1])
    unet, x = unet_of(base), normal(2, 4, 16, 16)
    found = [
        called(apply_lora(unet, read_lora(path, {"unet": unet}).components["unet"]), x)
        for path in (folder / LORA_NAME, file)
    ]
    assert_close(found[0], found[1], 1e-6)
    assert max_difference(found[0], called(unet, x)) > 1e-4


def test_the_trained_lora_is_what_its_file_says(base: Path, data: Path, tmp_path: Path) -> None:
    options = asked(tmp_path, base, data, "lora", lora=LoraSettings(rank=2, alpha=4.0))
    training = start(options, CPU)
    with torch.no_grad():
        for index, (_, layer) in enumerate(lora_layers(training.module)):
            layer.factors()[1].copy_(normal(*layer.factors()[1].shape, seed=index) / 50)
    write_result(options, training, training.module, "")
    unet, x = unet_of(base), normal(2, 4, 16, 16)
    changed = apply_lora(unet, read_lora(tmp_path / "out" / LORA_NAME, {"unet": unet}).components["unet"])
    assert_close(called(changed, x), called(training.module, x), 1e-5)
    assert max_difference(called(unet, x), called(training.module, x)) > 1e-3


def test_a_loss_that_is_no_number_stops_with_its_place(
    base: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    forward = UNet.forward

    def broken(self: UNet, *arguments: Any, **named: Any) -> Tensor:
        broken.calls += 1  # type: ignore[attr-defined]
        if broken.calls == 3:  # type: ignore[attr-defined]
            with torch.no_grad():
                self.mid_block.resnets[0].conv1.bias.fill_(math.nan)  # type: ignore[union-attr]
        return forward(self, *arguments, **named)

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(UNet, "forward", broken)
    with pytest.raises(NonFinite) as raised:
        train(asked(tmp_path, base, data, save_every=1e6))
    text = str(raised.value)
    assert (
        text.startswith("step 3, 2 pictures of 'a ") and ": the loss is nan, first in mid_block.resnets.0.conv1" in text
    )
    assert "; no weight has changed since the step before; the state of step 2 is kept" in text
    assert open_checkpoint(tmp_path / "out.work" / "state.safetensors").metadata["step"] == "2"


def test_a_full_disk_loses_no_earlier_state(base: Path, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    state = tmp_path / "out.work" / "state.safetensors"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_the_disk(progress: run.TrainingProgress) -> None:
        if progress.step == 3:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(TrainingStopped, match=r"state of step 3 could not be written \(No space left.*step 2 is kept"):
        train(asked(tmp_path, base, data), fill_the_disk)
    assert open_checkpoint(state).metadata["step"] == "2"
    monkeypatch.undo()
    assert train(asked(tmp_path, base, data, resume=True)).is_dir()


INPAINTING_BASE = "holds Stable Diffusion 1 inpainting, which enlarger train text-to-image cannot start from; enlarger "
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "inpainting base": ("text-to-image", {}, INPAINTING_BASE + "train inpainting starts from it"),
    "epsilon": ("inpainting", {"loss": ZERO_SNR}, "zero_terminal_snr needs another prediction than epsilon"),
    "zero SNR of a LoRA": ("lora", {"loss": ZERO_SNR}, "zero_terminal_snr changes the schedule, which a LoRA cannot"),
    "prediction of a LoRA": (
        "lora",
        {"loss": LossOptions("sample")},
        "prediction has no meaning for lora",
    ),
    "SNR of x2": ("upscaler-x2", {"loss": LossOptions(snr_gamma=5)}, "snr_gamma has no meaning for upscaler-x2"),
    "noise": ("inpainting", {"loss": LossOptions(max_noise_level=3)}, "max_noise_level has no meaning for inpainting"),
    "estimator": ("lora", {"estimator": Path("x")}, "estimator has no meaning for lora"),
    "no estimator": ("depth", {}, "has no depth_estimator; give --estimator, a folder of a depth model that has one"),
    "targets": ("lora", {"lora": LoraSettings(targets=("to_x",))}, "no layer's name ends with to_x, expected one of "),
    "resolution": ("text-to-image", {"resolution": 30}, "resolution is 30, expected a multiple of 4 for this model"),
    "x2 base": ("upscaler-x2", {}, "holds Stable Diffusion 1, which enlarger train upscaler-x2 cannot start from"),
    "a file": ("text-to-image", {"out": Path("a.safetensors")}, "the result is a folder, only a LoRA is a file"),
    "a tracker": (
        "lora",
        {"tracker": "pencil"},
        "tracker is 'pencil', which is none of accelerate's",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_contradicts_the_base_is_refused_before_the_first_step(
    base: Path, data: Path, tmp_path: Path, case: str, monkeypatch: Any
) -> None:
    task, options, message = REFUSED[case]
    monkeypatch.setattr(run, "train_steps", None)
    model = inpaint_folder(tmp_path, 9) if case == "inpainting base" else base
    with pytest.raises((InputError, Unsupported)) as raised:
        train(asked(tmp_path, model, data, task, **options))
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_places_that_are_taken(base: Path, data: Path, tmp_path: Path) -> None:
    options = asked(tmp_path, base, data, steps=1)
    train(options)
    with pytest.raises(InputError, match="out: already exists; choose another place"):
        train(options)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"out.work: holds the state of a training; add --resume"):
        train(options)
    with pytest.raises(InputError, match=r"seed is 2, it began with 0. Give the same settings"):
        train(replace(options, seed=2, resume=True))
    with pytest.raises(InputError, match=r"pictures of a step is 4, it began with 2"):
        train(replace(options, batch=4, resume=True))
    assert train(replace(options, steps=2, rate=1e-4, resume=True)).is_dir()


@pytest.mark.parametrize(
    "options",
    [{"rate": -1.0}, {"steps": 0}, {"batch": 0}, {"precision": "float8"}, {"seed": -1}],
    ids=["rate", "steps", "batch", "precision", "seed"],
)
def test_values_outside_their_limits(options: dict[str, Any]) -> None:
    with pytest.raises(EnlargerError, match=f"{next(iter(options))} is .*, expected"):
        TrainOptions("lora", "m", "d", Path("o"), **options)


def test_broken_pictures_are_left_out_and_named(base: Path, data: Path, tmp_path: Path, capfd: Any) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(data, folder)
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:700])
    (folder / "6.png").write_bytes(b"no picture")
    with training_progress(quiet=False) as watch:
        train(asked(tmp_path, base, folder, steps=8), watch)
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("step 1 of 8: loss ") and "GiB" in said[0] and "2 pictures left out" in said[-2]
    assert said[-1].startswith("2 of the data left out (6.png, 7.png); 6.png: ")
    assert "; 2 could not be read and were left out" in (tmp_path / "out" / "README.md").read_text()


def test_text_is_left_out_as_often_as_is_said(base: Path, data: Path, tmp_path: Path) -> None:
    text = start(asked(tmp_path, base, data, loss=LossOptions(text_dropout=0.25)), CPU).objective.text
    draws = draws_of_step(0, 0, range(400))
    batch = TrainingBatch(
        torch.zeros(400, 3, 4, 4), ("a red wall",) * 400, ((4, 4),) * 400, ((0, 0),) * 400, (4, 4), ("",) * 400
    )
    told = text(batch, draws).tokens
    assert told is not None
    empty = replace(text, dropout=1.0)(replace(batch, captions=("x",) * 400), draws_of_step(0, 0, range(400))).tokens
    share = sum(bool(row.equal(none)) for row, none in zip(told, empty, strict=True)) / 400
    assert abs(share - 0.25) < 0.07  # three standard deviations


def test_noise_levels_are_drawn_evenly_and_told(tmp_path: Path) -> None:
    folder = x2_folder(tmp_path)
    objective = start(
        asked(tmp_path, folder, tmp_path, "upscaler-x2", resolution=32, loss=LossOptions()), CPU
    ).objective
    sigmas = objective.noising(torch.zeros(2000, 4, 1, 1), draws_of_step(0, 0, range(2000))).time * 4
    low, high = float(sigmas.min()), float(sigmas.max())
    assert -3.6 < low < -3.4 and 2.6 < high < 2.7  # log sigma from 0.029 to 14.6
    counts = torch.histc(sigmas, 10)
    assert float(counts.min()) > 140 and float(counts.max()) < 260


def test_the_x2_upscaler_trains_and_keeps_its_noise_embedding(tmp_path: Path) -> None:
    data = pictures(tmp_path, 64)
    out = train(asked(tmp_path, x2_folder(tmp_path), data, "upscaler-x2", resolution=64, steps=2))
    assert read_folder(out).components["noise_frequencies"].shape == (64, 1)
    upscaler = enlarger.load(out, device="cpu")
    request = enlarger.UpscaleRequest(Image.new("RGB", (32, 32)), steps=2, noise_level=0.3, prompt="a wall")
    assert upscaler(request).image.size == (64, 64)


def test_a_loras_card_lies_on_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    options = asked(tmp_path, base, data, "lora", out=tmp_path / "a.safetensors")
    (tmp_path / "a.md").write_text("my notes")
    with pytest.raises(InputError, match=r"a.md: already exists; choose another place"):
        check_place(options)
    assert (tmp_path / "a.md").read_text() == "my notes"


def test_a_result_in_its_own_data_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    for out in (data / "out", data / "deeper" / "out", tmp_path / "link" / "out", data):
        with pytest.raises(InputError, match="lies in the data, which would grow by its own samples"):
            check_place(replace(asked(tmp_path, base, data), out=out))
    check_place(asked(data.parent, base, data))


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_finished_training_goes_on_and_replaces_only_its_own(
    base: Path, data: Path, tmp_path: Path, name: str
) -> None:
    options = asked(tmp_path, base, data, "lora", out=tmp_path / name, lora=LoraSettings(rank=1), steps=1)
    out = train(options)
    weights = out if out.is_file() else out / LORA_NAME
    before = weights.read_bytes()
    (options.work / ".state.safetensors.killed").write_bytes(b"half")
    train(replace(options, steps=2, rate=5e-4, resume=True))
    assert weights.read_bytes() != before and not list(options.work.glob(".state*"))
    log = [json.loads(line) for line in (options.work / "log.jsonl").read_text().splitlines()]
    assert [line.get("step", line.get("resumed_at")) for line in log] == [1, 1, 2] and log[1]["rate"] == 5e-4
    card = out.with_suffix(".md") if out.is_file() else out / "README.md"
    card.write_text("my own words")
    with pytest.raises(InputError, match="already exists; choose another place for the result, or move it away"):
        train(replace(options, steps=3, resume=True))
    assert card.read_text() == "my own words"


def test_what_came_to_its_place_meanwhile_is_left_alone(base: Path, data: Path, tmp_path: Path) -> None:
    options = asked(tmp_path, base, data, "lora", out=tmp_path / "style", lora=LoraSettings(rank=1), steps=1)

    def write(progress: Any) -> None:
        options.out.mkdir()
        (options.out / "notes.txt").write_text("mine")

    with pytest.raises(TrainingStopped, match="somebody wrote there while the training ran; move it away"):
        train(options, write)
    assert [path.name for path in options.out.iterdir()] == ["notes.txt"]
    options.out.rename(tmp_path / "away")
    assert train(replace(options, resume=True)) == options.out


def test_a_training_is_not_cut_back(base: Path, data: Path, tmp_path: Path) -> None:
    options = asked(tmp_path, base, data, "lora", out=tmp_path / "style", lora=LoraSettings(rank=1), steps=2)
    train(options)
    with pytest.raises(InputError, match="has learnt 2 steps, --steps is 1; give at least as many"):
        train(replace(options, steps=1, warmup=0, resume=True))


def test_a_result_without_room_is_a_sentence(base: Path, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(result, "save_lora", full)
    options = asked(tmp_path, base, data, "lora", lora=LoraSettings(rank=1))
    training = start(options, CPU)
    with pytest.raises(TrainingStopped, match=r"out: the result could not be written \(No space left.*--resume"):
        write_result(options, training, training.module, "")
    assert not options.out.exists()


def test_log_and_samples_without_room_stop_nothing(base: Path, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run, "write_samples", full)
    options = asked(tmp_path, base, data, "lora", steps=1, samples=SampleOptions(sample_every=1))
    with pytest.warns(UserWarning, match="log and samples of step 1 could not be written .* goes on without them"):
        assert train(options).is_dir()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, also where these tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_the_state_of_its_step(base: Path, data: Path, tmp_path: Path) -> None:
    def watch(progress: run.TrainingProgress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(asked(tmp_path, base, data, save_every=1e6), watch)
    assert open_checkpoint(tmp_path / "out.work" / "state.safetensors").metadata["step"] == "2"


def test_the_weight_whose_gradient_is_no_number_is_named_and_any_seed_does() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))

    def loss(network: nn.Module, batch: Tensor, progress: float) -> Tensor:
        module[1].weight.register_hook(lambda grad: grad * math.nan)
        return network(batch).sum()

    recipe = Recipe(1, 0.1, seed=MAX_SEED)
    with pytest.raises(NonFinite, match=r"the gradient of 1.weight is not finite"):
        list(train_steps(new_state(module, recipe), loss, iter([torch.ones(1, 1)]), recipe, 0))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_weights_are_numbers_where_there_is_almost_no_signal(prediction: Any) -> None:
    for schedule in (cosine(), cosine(zero_terminal_snr=True), linear(1e-4, 2e-2, zero_terminal_snr=True)):
        times = torch.tensor([0, 500, 998, 999])
        clean = torch.ones(4, 1, 2, 2)
        noised = ScheduledNoise(schedule, prediction, snr_gamma=5.0).at(clean, torch.zeros_like(clean), times)
        assert bool(noised.weight.isfinite().all()) and float(noised.weight.max()) <= 5
        if prediction == "epsilon":
            assert float(noised.weight[3]) == 1
    cut = ScheduledNoise(cosine(), "epsilon").at(clean, torch.zeros_like(clean), times)
    assert float(cut.x[3].max()) > 0  # a cosine's last product is small, not zero


def test_no_scheduler_is_written_that_cannot_run_the_prediction(base: Path, data: Path, tmp_path: Path) -> None:
    for prediction, expected in (("sample", "DDIMScheduler"), ("v_prediction", None)):
        training = start(asked(tmp_path, base, data, loss=LossOptions(prediction)), CPU)
        found = training.components.components["scheduler"]
        usual = read_folder(base).components["scheduler"]["_class_name"]
        assert found["prediction_type"] == prediction and found["_class_name"] == (expected or usual)
        assert training.sampler.prediction == prediction


def test_epsilon_on_a_schedule_that_ends_in_noise_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    place = shutil.copytree(base, tmp_path / "base")
    path = place / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    with pytest.raises(InputError, match="which ends in pure noise, needs another prediction than epsilon"):
        start(asked(tmp_path, place, data), CPU)


def test_noise_levels_of_upscalers_have_bounds_and_are_written(tmp_path: Path) -> None:
    options = asked(tmp_path, x4_folder(), tmp_path, "upscaler-x4", resolution=64)
    training = start(replace(options, loss=LossOptions(max_noise_level=100)), CPU)
    assert training.components.index["max_noise_level"] == 100 and training.max_noise_level == 100
    with pytest.raises(InputError, match=r"max_noise_level is 20.5, expected a whole number from 0 to \d+"):
        start(replace(options, loss=LossOptions(max_noise_level=20.5)), CPU)
    with pytest.raises(InputError, match="max_noise_level is 350, expected a level from 0 to"):
        check_options(replace(options, task="upscaler-x2", loss=LossOptions(max_noise_level=350)))


@pytest.mark.parametrize("name", ["sample_prompts", "sample_steps", "sample_guidance"])
def test_how_samples_are_made_says_nothing_without_any(base: Path, data: Path, tmp_path: Path, name: str) -> None:
    value = {"sample_prompts": ("x",), "sample_steps": 3, "sample_guidance": 2.0}[name]
    samples = replace(SampleOptions(), **{name: value})
    with pytest.raises(InputError, match=f"{name} has no effect without samples; add --sample-every"):
        check_options(asked(tmp_path, base, data, samples=samples))
    check_options(asked(tmp_path, base, data, samples=replace(samples, sample_every=5)))


def test_alpha_is_in_the_factors_themselves(base: Path, tmp_path: Path) -> None:
    settings = LoraSettings(rank=2, alpha=8.0)
    learner = with_lora(unet_of(base), settings, 0)
    for _, layer in lora_layers(learner):
        nn.init.ones_(layer.factors()[1])
    save_lora(learner, tmp_path / "a.safetensors", settings, "diffusers")
    found = open_checkpoint(tmp_path / "a.safetensors")
    name = next(name for name in found.keys() if name.endswith(".lora_B.weight"))
    assert float(found.get_tensor(name).max()) == 4
    assert json.loads(found.metadata["lora_adapter_metadata"])["unet.lora_alpha"] == 2


def test_kohyas_names_of_sdxl() -> None:
    layers = [
        "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.1.conv1", "add_embedding.linear_1",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.1.attentions.0.proj_in",
        "mid_block.attentions.0.proj_in", "up_blocks.1.upsamplers.0.conv", "down_blocks.0.downsamplers.0.conv",
        "up_blocks.2.upsamplers.0.conv",
    ]  # fmt: skip
    assert list(sdxl_layer_names(layers).values()) == [
        "input_blocks.1.0.in_layers.2", "input_blocks.2.0.in_layers.2", "label_emb.0.0",
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q", "output_blocks.3.1.proj_in", "middle_block.1.proj_in",
        "output_blocks.5.2.conv", "input_blocks.3.0.op", "output_blocks.8.1.conv",
    ]  # fmt: skip


@pytest.mark.parametrize("launched", [None, "fp16", "bf16"], ids=str)
def test_a_device_or_precision_that_accelerate_would_change_is_refused(
    tmp_path: Path, monkeypatch: Any, launched: str | None
) -> None:
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        with pytest.raises(InputError, match=f"launched with --mixed_precision {launched}, and precision is float32"):
            choose_devices(CPU, "float32", None, tmp_path)
    with pytest.raises(InputError, match="device is cuda:1, but with accelerate or a tracker the first one is taken"):
        choose_devices(torch.device("cuda:1"), "float32", "tensorboard", tmp_path)


def test_a_warm_up_without_end_is_said(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="warmup is 2 steps of 1: the rate never reaches 0.001"):
        train(asked(tmp_path, base, data, "lora", lora=LoraSettings(rank=1), steps=1, warmup=2))


def test_a_training_goes_on_from_its_own_base_and_data_alone(base: Path, data: Path, tmp_path: Path) -> None:
    options = asked(tmp_path, base, data, "lora", lora=LoraSettings(rank=1), steps=1)
    train(options)
    more, moved, other = replace(options, steps=2, resume=True), tmp_path / "moved", tmp_path / "other"
    for place in (moved, other):
        shutil.copytree(data, place)
    (other / "3.txt").write_text("another caption")
    with pytest.raises(InputError, match=r"digest of the pictures' sizes and captions is .*, it began with"):
        train(replace(more, data=other))
    with pytest.raises(InputError, match=r"digest of the base's weights is .*, it began with"):
        train(replace(more, model=inpaint_folder(tmp_path, 4)))
    train(replace(more, data=moved))
