"""The workshop: the loop, resumption, the photos, the pairs, and each stage on tiny networks."""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from enlarger import UpscaleRequest, load_upscaler
from enlarger.errors import CheckpointError, InputError
from enlarger.nn.compact import upsample_bicubic
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.train.drawn import drawn_pair
from enlarger.train.loop import learn
from enlarger.train.muon import orthogonal
from enlarger.train.pairs import Mixture, Pair, Pairs, batches, halve
from enlarger.train.photos import Photos, read_photos
from enlarger.train.recipe import Recipe
from enlarger.train.stages import psnr, widened
from enlarger.train.state import State, TrainingStopped
from enlarger.train.upscaler import Plan, Stage, train_upscaler
from tests.support.close import assert_close, max_difference
from tests.support.pictures import texture
from tests.support.random_weights import randomise

TINY = UpscaleNetConfig(8, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small photos, one of them in a folder below, and a file that is none."""
    place = tmp_path_factory.mktemp("photos")
    (place / "below").mkdir()
    for index, name in enumerate(("a.png", "b.JPG", "c.webp", "below/d.tif", "e.bmp")):
        Image.fromarray(texture(90, 70 + index, seed=index)).save(place / name)
    (place / "notes.txt").write_text("not a picture")
    return place


@pytest.fixture
def photos(folder: Path, tmp_path: Path) -> Photos:
    return read_photos(folder, tmp_path / "pixels", 24, workers=1)


def fit(module: nn.Module, pair: Pair, progress: float) -> Tensor:
    """Learn to multiply by 3."""
    return (module(pair.small) - 3 * pair.small).square().mean()


def numbers(first: int, end: int) -> Iterator[Pair]:
    """The batches of some steps: numbers that follow from the step."""
    for step in range(first, end):
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(16, 1))).float()
        yield Pair(x, x, x)


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def log(path: Path) -> list[dict[str, object]]:
    """Every line of a log; each must be JSON."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_the_loss_falls(tmp_path: Path) -> None:
    module = line()
    averaged = learn(module, fit, numbers, Recipe(200, 0.05, warmup=5, log_every=20), tmp_path / "new", "toy")
    said = log(tmp_path / "new" / "toy.jsonl")
    assert said[0]["resumed_at"] == 0 and said[0]["recipe"]["steps"] == 200  # type: ignore[index]
    losses = [entry["loss"] for entry in said[1:]]
    assert losses[-1] < losses[0] / 4  # type: ignore[operator]
    assert [entry["step"] for entry in said[1:3]] == [20, 40]
    assert averaged is not module and not averaged.training
    assert not any(p.requires_grad for p in averaged.parameters())


def test_the_rate_warms_up_is_held_and_falls() -> None:
    recipe = Recipe(100, 0.5, hold=0.4, warmup=10)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert_close(torch.tensor(rates[:10]), 0.05 * torch.arange(1, 11), 1e-6)
    assert rates[10:41] == [0.5] * 31
    assert all(a > b for a, b in pairwise(rates[41:]))
    assert recipe.rate_at(100) == pytest.approx(0.01)


@pytest.mark.parametrize("muon", [False, True])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, photos: Photos, muon: bool) -> None:
    class Interrupted(Exception):
        pass

    def loss(module: nn.Module, pair: Pair, progress: float) -> Tensor:
        noise = torch.randn(()) * 0.1  # chance in the loss resumes as well
        return (module(pair.small) - pair.large).abs().mean() * (1 + noise.abs())

    def source(first: int, end: int) -> Iterator[Pair]:
        return batches(Pairs(photos, Mixture(2), 0), first, end, 0)

    def stops(module: nn.Module, pair: Pair, progress: float) -> Tensor:
        if progress == 0.5:
            raise Interrupted
        return loss(module, pair, progress)

    recipe = Recipe(8, 1e-3, warmup=2, save_every=0, muon=muon)
    whole = learn(widened(TINY, None, 1), loss, source, recipe, tmp_path / "whole", "net")
    with pytest.raises(Interrupted):
        learn(widened(TINY, None, 1), stops, source, recipe, tmp_path / "parts", "net")
    parts = learn(widened(TINY, None, 1), loss, source, recipe, tmp_path / "parts", "net")
    assert all(value.equal(whole.state_dict()[name]) for name, value in parts.state_dict().items())
    assert [e["resumed_at"] for e in log(tmp_path / "parts" / "net.jsonl") if "recipe" in e] == [0, 4]
    states = (safetensors.torch.load_file(tmp_path / place / "net.safetensors") for place in ("whole", "parts"))
    a, b = states
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    again = learn(widened(TINY, None, 2), stops, source, recipe, tmp_path / "parts", "net")  # nothing is left to do
    assert all(value.equal(parts.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    learn(line(), fit, numbers, Recipe(2, 0.02), tmp_path, "toy")
    with pytest.raises(InputError, match=r"toy.safetensors: is of another network than this training's"):
        learn(nn.Linear(1, 2), fit, numbers, Recipe(4, 0.02), tmp_path, "toy")


def test_the_state_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(line(), fit, numbers, Recipe(2, 0.02), tmp_path, "toy")
    before = (tmp_path / "toy.safetensors").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(TrainingStopped) as raised:
        learn(line(), fit, numbers, Recipe(4, 0.02), tmp_path, "toy")
    assert str(raised.value) == (
        f"{tmp_path}/toy.safetensors: the state of step 4 could not be written (No space left on device); that of step "
        "2 is kept: make room and go on"
    )
    assert (tmp_path / "toy.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"] == ["toy.safetensors"]


def test_the_average_follows_the_weights() -> None:
    mean, now = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(mean.weight, 0.0)
    nn.init.constant_(now.weight, 1.0)
    State(now, mean, ()).average(0.75)
    assert mean.weight.item() == pytest.approx(0.25)


def test_scores_are_logged(tmp_path: Path) -> None:
    recipe = Recipe(40, 0.02, log_every=2, score_every=20)
    learn(line(), fit, numbers, recipe, tmp_path, "toy", lambda module: {"weight": 1.5})
    said = log(tmp_path / "toy.jsonl")
    assert said[-1]["weight"] == 1.5 and any("weight" in e for e in said[:-1] if e.get("step") == 20)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8)])
def test_muon_s_change_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3


def test_photos_are_found_and_cut(folder: Path, photos: Photos, tmp_path: Path) -> None:
    assert len(photos.places) == 5
    assert all(min(place[1:]) >= 24 and max(place[1:]) <= 81 for place in photos.places)
    crops = [photos.draw(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert crops[0].shape == (24, 24, 3) and crops[0].dtype == np.uint8
    assert np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])
    made = (tmp_path / "pixels" / "photos.bin").stat().st_mtime_ns
    same = read_photos(folder, tmp_path / "pixels", 24, workers=1)
    assert same.places == photos.places and np.array_equal(same.pixels, photos.pixels)
    assert (tmp_path / "pixels" / "photos.bin").stat().st_mtime_ns == made  # read once
    other = read_photos(folder, tmp_path / "pixels", 24, seed=1, workers=1)
    assert other.places != photos.places


def test_photos_hold_some_out(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    assert photos.split() == (photos, photos)  # too few to hold any out
    monkeypatch.setattr("enlarger.train.photos.HOLD_OUT", 5)
    training, held_out = photos.split()
    assert (training.places, held_out.places) == (photos.places[:4], photos.places[4:])


def test_folders_without_photos(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError) as raised:
        read_photos(empty, tmp_path / "w", 32, workers=1)
    assert str(raised.value) == f"{empty}: no pictures of 32 x 32 pixels or more; give a folder of photos"
    with pytest.raises(InputError, match="no pictures of 200 x 200 pixels or more"):
        read_photos(folder, tmp_path / "w", 200, workers=1)
    (empty / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(InputError, match=r"broken.png: cannot be read as a picture"):
        read_photos(empty, tmp_path / "w", 32, workers=1)


def test_a_batch_follows_from_the_seed_and_its_step(photos: Photos) -> None:
    pairs = Pairs(photos, Mixture(4), 3)
    first, again, next_one, other = pairs[5], pairs[5], pairs[6], Pairs(photos, Mixture(4), 4)[5]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not first[0].equal(next_one[0]) and not first[0].equal(other[0])
    made = list(batches(pairs, 5, 7, 1))  # in a process of its own
    assert len(made) == 2 and made[0].large.shape == (4, 3, 24, 24) and made[0].small.shape == (4, 3, 12, 12)
    assert_close((made[0].large + 1) * 127.5, first[0].permute(0, 3, 1, 2).float(), 1e-4)


def test_photographs_are_halved_by_pillow(photos: Photos) -> None:
    large, small, strength = Pairs(photos, Mixture(3, drawn=0, kernels=0), 0)[0]
    for one, half in zip(large.numpy(), small.numpy(), strict=True):
        assert np.array_equal(half, halve(one))
    assert float(strength.abs().max()) == 0
    others = Pairs(photos, Mixture(8, drawn=0, kernels=1), 0)[0]
    differ = [not np.array_equal(h, halve(o)) for o, h in zip(others[0].numpy(), others[1].numpy(), strict=True)]
    assert all(differ)


def test_cells_are_exact_at_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enlarger.train.drawn.CELLS", 1.0)
    for seed in range(5):
        large, small = drawn_pair(np.random.default_rng(seed), 32)
        assert large.shape == (32, 32, 3) and np.array_equal(large, small.repeat(2, 0).repeat(2, 1))


def test_drawings_are_the_same_picture_at_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enlarger.train.drawn.CELLS", 0.0)
    for seed in range(5):
        large, small = drawn_pair(np.random.default_rng(seed), 48)
        box = large.reshape(24, 2, 24, 2, 3).mean((1, 3))
        assert np.abs(box - small).mean() < 8 and large.std() > 5


def test_a_wider_network_begins_as_the_one_it_grew_from() -> None:
    start = randomise(UpscaleNet(TINY))
    wide = widened(UpscaleNetConfig(8, 2, 1), start, 0).eval()
    picture, plane = torch.rand(1, 3, 10, 12) * 2 - 1, torch.rand(1, 1, 10, 12)
    with torch.no_grad():
        assert_close(wide(torch.cat([picture, plane], 1)), start(picture), 1e-5)


def test_psnr() -> None:
    flat = torch.zeros(2, 3, 4, 4)
    assert psnr(flat + 0.2, flat) == pytest.approx(20, abs=1e-4)  # a tenth of the range


def test_the_stages_and_their_model(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(2, 1e-3, warmup=1, log_every=1)
    stages = {
        "predictor": Stage(UpscaleNetConfig(8, 2), replace(recipe, muon=True), Mixture(2)),
        "detailer": Stage(TINY, recipe, Mixture(2)),
        "graphics": Stage(TINY, recipe, Mixture(2, drawn=0.5)),
        "restorer": Stage(UpscaleNetConfig(8, 2, 1), recipe, Mixture(2)),
    }
    plan = Plan(folder, tmp_path / "model", tmp_path / "work", workers=0)
    train_upscaler(plan, stages, crop=32)
    for name in stages:
        assert log(tmp_path / "work" / f"{name}.jsonl")[-1]["psnr"] > 8  # type: ignore[operator]
        with Image.open(tmp_path / "work" / f"{name}.png") as plot:
            assert plot.width == 720
    made = load_upscaler(tmp_path / "model")
    assert made(UpscaleRequest(Image.fromarray(texture(9, 8)), detail=0.5, restore=0.5)).image.size == (18, 16)
    further = Plan(folder, tmp_path / "next", tmp_path / "more", start=tmp_path / "model", steps=1, workers=0)
    train_upscaler(further, stages, crop=32)
    assert [e["step"] for e in log(tmp_path / "more" / "restorer.jsonl") if "loss" in e] == [1]


def test_where_a_training_cannot_begin(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    plan = Plan(folder, tmp_path / "m", tmp_path / "w", judges=tmp_path / "none.safetensors", workers=0)
    with pytest.raises(
        CheckpointError, match=r"holds no weights of LPIPS and DISTS .*make the file with scripts/judges"
    ):
        train_upscaler(plan, crop=32)


def test_an_untrained_network_is_bicubic() -> None:
    picture = torch.rand(1, 3, 7, 9) * 2 - 1
    assert max_difference(UpscaleNet(TINY)(picture).detach(), upsample_bicubic(picture)) == 0
