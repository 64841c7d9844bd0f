"""The workshop: the loop, resumption, the photos, and each stage on tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.nn.compact import CompactAutoencoderConfig, Predictor, PredictorConfig, downsample_bicubic
from enlarger.nn.compact_unet import CompactStage, CompactUNetConfig
from enlarger.tasks.upscale.bundled import SIGMA_MAX
from enlarger.train import loop
from enlarger.train.autoencoder import train_autoencoder
from enlarger.train.denoiser import NoiseLevelDistribution, train_denoiser
from enlarger.train.loop import TrainingConfig, train
from enlarger.train.photos import Degradation, make_pairs, read_photos
from enlarger.train.predictor import psnr, train_predictor
from tests.support.close import assert_close, max_difference
from tests.support.pictures import texture

NEVER = Degradation(blur=0, jpeg=0)
STRONG = (0.7, 0.8)  # pixels of blur


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small photos, one of them in a folder below, and a file that is none."""
    place = tmp_path_factory.mktemp("photos")
    (place / "below").mkdir()
    for index, name in enumerate(("a.png", "b.JPG", "c.webp", "below/d.tif", "e.bmp")):
        Image.fromarray(texture(90, 70 + index, seed=index)).save(place / name)
    (place / "notes.txt").write_text("not a picture")
    return place


def fit(module: nn.Module, draw: np.random.Generator, progress: float) -> Tensor:
    """Learn to multiply by 3."""
    x = torch.from_numpy(draw.normal(size=(16, 1))).float()
    return (module(x) - 3 * x).square().mean()


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def log(path: Path) -> list[dict[str, object]]:
    """Every line of a log; each must be JSON."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_the_loss_falls(tmp_path: Path) -> None:
    module = line()
    averaged = train(module, fit, TrainingConfig(0.01, 0.05, warmup=5, log_every=20), tmp_path / "new", "toy")
    said = log(tmp_path / "new" / "toy.jsonl")
    assert said[0]["resumed_at"] == 0 and said[0]["recipe"]["minutes"] == 0.01  # type: ignore[index]
    losses = [entry["loss"] for entry in said[1:]]
    assert losses[-1] < losses[0] / 4  # type: ignore[operator]
    assert [entry["step"] for entry in said[1:3]] == [20, 40]
    assert averaged is not module and not averaged.training
    assert not any(p.requires_grad for p in averaged.parameters())


def test_the_rate_warms_up_and_falls() -> None:
    recipe = TrainingConfig(1, 0.5, warmup=10)
    rates = [loop._learning_rate(recipe, step, 0.0) for step in range(12)]
    assert_close(torch.tensor(rates[:10]), 0.05 * torch.arange(1, 11), 1e-6)
    assert rates[-1] == 0.5
    assert loop._learning_rate(recipe, 99, 1.0) == pytest.approx(0.005)


def test_an_interrupted_training_goes_on_where_it_was(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    steps = 0

    def stops(module: nn.Module, draw: np.random.Generator, progress: float) -> Tensor:
        nonlocal steps
        if steps == 30:
            raise Interrupted
        steps += 1
        return fit(module, draw, progress)

    recipe = TrainingConfig(0.01, 0.02, warmup=1, log_every=5, save_every=0.0)
    with pytest.raises(Interrupted):
        train(line(), stops, recipe, tmp_path, "toy")
    kept = torch.load(tmp_path / "toy.state", weights_only=True)
    assert kept["step"] == 30 and 0 < kept["elapsed"] < 0.6

    first: list[float] = []

    def watches(module: nn.Module, draw: np.random.Generator, progress: float) -> Tensor:
        first.append(progress)
        if len(first) == 1:
            assert all(value.equal(kept["module"][name]) for name, value in module.state_dict().items())
            assert json.dumps(draw.bit_generator.state) == kept["draw"]
        return fit(module, draw, progress)

    train(line(), watches, recipe, tmp_path, "toy")
    assert first[0] == pytest.approx(kept["elapsed"] / 0.6)
    said = log(tmp_path / "toy.jsonl")
    assert [entry["resumed_at"] for entry in said if "recipe" in entry] == [0, 30]
    steps_said = [entry["step"] for entry in said if "step" in entry]
    assert steps_said == list(range(5, 5 * len(steps_said) + 1, 5))
    done = torch.load(tmp_path / "toy.state", weights_only=True)
    assert done["step"] == 30 + len(first) and done["elapsed"] >= 0.6

    again = train(line(), stops, recipe, tmp_path, "toy")  # nothing is left to do
    assert all(value.equal(done["averaged"][name]) for name, value in again.state_dict().items())


def test_the_state_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainingConfig(0.0005, 0.02)
    train(line(), fit, recipe, tmp_path, "toy")
    before = (tmp_path / "toy.state").read_bytes()

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        train(line(), fit, TrainingConfig(0.001, 0.02), tmp_path, "toy")
    assert (tmp_path / "toy.state").read_bytes() == before


def test_the_average_follows_the_weights() -> None:
    mean, now = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(mean.weight, 0.0)
    nn.init.constant_(now.weight, 1.0)
    loop._update_ema(mean, now, 0.75)
    assert mean.weight.item() == pytest.approx(0.25)


def test_scores_are_logged(tmp_path: Path) -> None:
    train(line(), fit, TrainingConfig(0.003, 0.02, log_every=2), tmp_path, "toy", lambda module: {"weight": 1.5})
    said = log(tmp_path / "toy.jsonl")
    assert said[-1]["weight"] == 1.5 and any("weight" in e for e in said[:-1] if e.get("step") == 20)


def test_photos_are_found_and_cut(folder: Path) -> None:
    photos = read_photos(folder, 24)
    assert len(photos.pictures) == 5
    assert all(min(p.shape[:2]) >= 24 and max(p.shape[:2]) <= 81 and p.dtype == np.uint8 for p in photos.pictures)
    crops = photos.sample_crops(3, np.random.default_rng(0))
    assert crops.shape == (3, 3, 24, 24) and crops.dtype == torch.float32
    assert -1 <= float(crops.min()) < -0.5 and 0.5 < float(crops.max()) <= 1
    assert photos.sample_crops(3, np.random.default_rng(0)).equal(crops)
    assert not photos.sample_crops(3, np.random.default_rng(1)).equal(crops)
    same = read_photos(folder, 24)
    assert all(np.array_equal(a, b) for a, b in zip(photos.pictures, same.pictures, strict=True))


def test_photos_hold_some_out(folder: Path) -> None:
    photos = read_photos(folder, 24)
    training, held_out = photos.split(every=5)
    assert (len(training.pictures), len(held_out.pictures)) == (4, 1)
    assert held_out.pictures[0] is photos.pictures[4] and held_out.crop == 24
    assert photos.split() == (photos, photos)  # too few to hold any out


def test_folders_without_photos(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_photos(tmp_path, 32)
    assert str(raised.value) == f"{tmp_path}: no pictures of 32 x 32 pixels or more; give a folder of photos"
    with pytest.raises(InputError, match="no pictures of 200 x 200 pixels or more"):
        read_photos(folder, 200)
    with pytest.raises(InputError, match="no pictures of 32 x 32 pixels"):
        read_photos(tmp_path / "missing", 32)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(InputError, match=r"broken.png: cannot be read as a picture"):
        read_photos(tmp_path, 32)


def test_pairs(folder: Path) -> None:
    large = read_photos(folder, 24).sample_crops(4, np.random.default_rng(0))
    plain = make_pairs(large, np.random.default_rng(0))
    assert plain.large is large and plain.small.shape == (4, 3, 12, 12)
    assert_close(plain.small, downsample_bicubic(large).clamp(-1, 1), 0.5 / 127.5 + 1e-6)
    levels = (plain.small + 1) * 127.5
    assert_close(levels, levels.round(), 1e-4)  # 8 bits
    assert make_pairs(large, np.random.default_rng(0), NEVER).small.equal(plain.small)


@pytest.mark.parametrize(
    "degradation", [Degradation(1, STRONG, 0), Degradation(0, STRONG, 1), Degradation(1, STRONG, 1)]
)
def test_degradations_are_applied(folder: Path, degradation: Degradation) -> None:
    large = read_photos(folder, 24).sample_crops(4, np.random.default_rng(0))
    plain = make_pairs(large, np.random.default_rng(0)).small
    worse = make_pairs(large, np.random.default_rng(0), degradation).small
    assert worse.shape == plain.shape and float(worse.min()) >= -1 and float(worse.max()) <= 1
    assert all(0.01 < max_difference(a, b) < 1.5 for a, b in zip(worse, plain, strict=True))
    if degradation.jpeg == 0:  # blur takes contrast away and nothing else
        assert float(worse.std()) < float(plain.std())
        assert abs(float(worse.mean() - plain.mean())) < 0.05


def test_psnr() -> None:
    flat = torch.zeros(2, 3, 4, 4)
    assert psnr(flat + 0.2, flat) == pytest.approx(20, abs=1e-4)  # a tenth of the range


def test_noise_levels_are_those_of_the_ladder() -> None:
    levels = NoiseLevelDistribution().sample(2000, np.random.default_rng(0))
    assert float(levels.min()) > 0.0099 and float(levels.max()) == SIGMA_MAX
    assert 0.03 < float((levels == SIGMA_MAX).float().mean()) < 0.12  # the share, and what is clipped to it


def test_the_three_stages(folder: Path, tmp_path: Path) -> None:
    photos, recipe = read_photos(folder, 32), TrainingConfig(0.01, 0.003, warmup=2, log_every=1)
    predictor = train_predictor(photos, PredictorConfig(4, 1), recipe, tmp_path, 4)
    assert log(tmp_path / "predictor.jsonl")[-1]["psnr"] >= 10
    autoencoder = train_autoencoder(photos, CompactAutoencoderConfig(4, 4, 1), recipe, tmp_path, 4)
    assert log(tmp_path / "autoencoder.jsonl")[-1]["psnr"] >= 10
    config = CompactUNetConfig(8, 4, (CompactStage(4, 1), CompactStage(4, 1)), 8, (1.0,) * 4)
    denoiser = train_denoiser(photos, predictor, autoencoder, config, recipe, tmp_path, 4)
    final = log(tmp_path / "denoiser.jsonl")[-1]
    assert {"loss_at_0.05", "loss_at_4"} < set(final)
    assert denoiser.config.deviation != config.deviation and len(denoiser.config.deviation) == 4
    assert isinstance(predictor, Predictor)
    assert denoiser(torch.zeros(1, 8, 8, 8), torch.zeros(1)).shape == (1, 4, 8, 8)
