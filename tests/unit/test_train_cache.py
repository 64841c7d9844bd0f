"""Latents and text on disk: computed once for each content and model, written whole, equal in training."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from enlarger.checkpoint.tensors.open import open_weights
from enlarger.errors import InputError
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.train.captions import Captions
from enlarger.train.data import TrainingBatch
from enlarger.train.data import cache as caching
from enlarger.train.data.cache import TensorCache, weights_digest
from enlarger.train.draws import draws_of_step
from enlarger.train.options import DataSettings
from enlarger.train.run import train
from enlarger.train.start import start
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.training import asked, base_folder, pictures

CENTRED = DataSettings(center_crop=True, random_flip=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


def test_a_content_is_computed_once_and_another_model_has_its_own(tmp_path: Path) -> None:
    calls = list[str]()

    def compute() -> dict[str, torch.Tensor]:
        calls.append("x")
        return {"mean": torch.full((2, 3), float(len(calls)))}

    cache = TensorCache(tmp_path, "model")
    for _ in range(2):
        assert_close(cache.get("a", compute)["mean"], torch.ones(2, 3), 0)
    assert_close(TensorCache(tmp_path, "other").get("a", compute)["mean"], torch.full((2, 3), 2.0), 0)
    assert len(calls) == 2 and len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, "model")
    cache.get("a", lambda: {"x": torch.zeros(3)})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert_close(cache.get("a", lambda: {"x": torch.ones(3)})["x"], torch.ones(3), 0)
    assert_close(safetensors.torch.load_file(path)["x"], torch.ones(3), 0)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "atomic_write", full)
    with pytest.raises(InputError, match="No space left on device"):
        TensorCache(tmp_path, "model").get("a", lambda: {"x": torch.zeros(1)})


def test_networks_are_told_apart_by_their_weights() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert weights_digest(one) == weights_digest(one) != weights_digest(other)
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(other) != weights_digest(other.double())


def test_another_precision_has_a_place_of_its_own(tmp_path: Path) -> None:
    cache, calls = TensorCache(tmp_path, "model"), list[str]()

    def compute() -> dict[str, torch.Tensor]:
        calls.append("x")
        return {"x": torch.zeros(1)}

    for _ in range(2):
        cache.get("a", compute)
        with torch.autocast("cpu", torch.bfloat16):
            cache.get("a", compute)
    assert len(calls) == 2


def test_other_layers_and_other_tokenizers_have_places_of_their_own(tmp_path: Path) -> None:
    plain = start(asked(tmp_path, base_folder(tmp_path), tmp_path), torch.device("cpu")).objective.text
    assert isinstance(plain, Captions)
    batch = TrainingBatch(torch.zeros(1, 3, 4, 4), ("a red wall",), ((4, 4),), ((0, 0),), (4, 4), ("",))
    other = replace(plain.tokenizers[0], pad_token_id=5)
    for captions in (plain, replace(plain, features="with_pooled"), replace(plain, tokenizers=(other,))):
        kept = replace(captions, cache=TensorCache(tmp_path / "cache", "model"))
        for _ in range(2):
            expected, found = (each(batch, draws_of_step(0, 0, [0])).tokens for each in (captions, kept))
            assert expected is not None and found is not None
            assert_close(found, expected, 0)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


def test_training_with_a_cache_is_training_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data, kept = base_folder(tmp_path), pictures(tmp_path), tmp_path / "cache"

    def learn(name: str, **options: Any) -> dict[str, torch.Tensor]:
        out = train(asked(tmp_path, base, data, out=tmp_path / name, data_settings=CENTRED, rate=1e-4, **options))
        weights = open_weights(out / "unet")
        return {key: weights.get_tensor(key) for key in weights.keys()}

    plain, first = learn("plain"), learn("first", cache=kept)  # pictures alone, and in a batch, differ by rounding
    for name, value in plain.items():
        assert_close(first[name], value, 1e-5)
    monkeypatch.setattr(LatentDiffusion, "posterior", lambda *_: pytest.fail("all latents are there"))
    for name, value in learn("second", cache=kept).items():
        assert_close(value, first[name], 0)


def test_a_cache_of_cuts_at_random_places_is_refused(tmp_path: Path) -> None:
    options = asked(tmp_path, tmp_path, tmp_path / "data", cache=tmp_path / "cache")
    with pytest.raises(InputError, match="the cache keeps pictures as they are cut"):
        train(options)
