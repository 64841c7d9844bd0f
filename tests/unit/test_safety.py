"""What the safety checker says of itself, and the preprocessing files that cannot be followed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.tasks.auxiliary.safety_checker import (
    DEFAULT_PREPROCESSOR,
    SafetyChecker,
    map_checker_key,
    missing_checker_note,
)
from enlarger.tasks.auxiliary.vision import preprocessor_from_config, read_preprocessor
from tests.support.tiny_vision import pictures


def test_the_note_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_checker_note(tmp_path) == f"not checked for unsafe content: {tmp_path} has no safety_checker"
    (tmp_path / "safety_checker").mkdir()
    assert missing_checker_note(tmp_path) is None
    monkeypatch.setitem(sys.modules, "transformers", None)
    expected = "not checked for unsafe content: the checker needs transformers; install enlarger[safety]"
    assert missing_checker_note(tmp_path) == expected
    with pytest.raises(Unsupported, match=r"install enlarger\[safety\], or leave the checker out"):
        SafetyChecker.from_folder(tmp_path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "safety_checker").mkdir()
    (tmp_path / "safety_checker" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CheckpointError, match="safety_checker: holds a vit, expected a clip; leave it out"):
        SafetyChecker.from_folder(tmp_path)


def test_names_of_old_and_new_files() -> None:
    assert map_checker_key("vision_model.vision_model.pre_layrnorm.bias") == "vision_model.pre_layrnorm.bias"
    assert map_checker_key("vision_model.pre_layrnorm.bias") == "vision_model.pre_layrnorm.bias"
    assert map_checker_key("concept_embeds") == "concept_embeds"
    assert map_checker_key("vision_model.vision_model.embeddings.position_ids") is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": {"longest_edge": 9}}, r"size is .*; supported: height and width, or shortest_edge"),
        ({"crop_size": "all"}, r"crop_size is 'all'; supported"),
        ({"do_pad": True}, "do_pad is True; supported: False"),
        ({"do_flip": True}, "unknown settings do_flip"),
    ],
)
def test_unknown_preprocessing_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        preprocessor_from_config(changed, DEFAULT_PREPROCESSOR)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resample": 9}, "resample is 9, expected 0 to 5"),
        ({"image_mean": [0.5]}, "expected 3 numbers each"),
    ],
)
def test_wrong_preprocessing_is_refused_with_its_file(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    (tmp_path / "feature_extractor").mkdir()
    file = tmp_path / "feature_extractor" / "preprocessor_config.json"
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json: cannot be read"):
        read_preprocessor(tmp_path, DEFAULT_PREPROCESSOR)
    file.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=rf"preprocessor_config.json: .*{message}"):
        read_preprocessor(tmp_path, DEFAULT_PREPROCESSOR)


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    narrow = preprocessor_from_config({"size": 20, "crop_size": 28}, DEFAULT_PREPROCESSOR)
    with pytest.raises(Unsupported, match=r"crops 20 x 40 pixels to \(28, 28\); give a larger size"):
        narrow(pictures(1, 30, 60))


def test_bad_pictures_are_refused() -> None:
    with pytest.raises(InputError, match=r"found pictures of shape \(1, 4, 8, 8\), expected \(B, 3, H, W\) in -1..1"):
        SafetyChecker(torch.nn.Linear(1, 1), DEFAULT_PREPROCESSOR)(torch.zeros(1, 4, 8, 8))
