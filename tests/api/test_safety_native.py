"""The native tasks report what a safety checker flags, and leave the pictures as they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import enlarger
from tests.support import tiny
from tests.support.tiny_checked import folder_with_checker

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

GENERATE: dict[str, Any] = {"steps": 2, "device": "cpu", "guidance": 7.5}


def test_what_is_flagged_is_reported_and_kept(tmp_path: Path) -> None:
    folder, _ = folder_with_checker(tmp_path, above=0.6)
    made = enlarger.generate("a cat", model=folder, count=2, **GENERATE)
    assert made.flagged == (True, True) and made.notes == ("the safety checker flags this; see `flagged`",)
    assert made.image.getextrema() != ((0, 0),) * 3
    refined = enlarger.refine(made.image, model=folder, steps=4, device="cpu")
    assert refined.flagged is not None and len(refined.flagged) == 1
    repaired = enlarger.inpaint(made.image, Image.new("L", (64, 64), 255), model=folder, steps=1, device="cpu")
    assert repaired.flagged is not None and len(repaired.flagged) == 1
    untouched = enlarger.inpaint(made.image, Image.new("L", (64, 64)), model=folder, steps=1, device="cpu")
    assert untouched.flagged is None


def test_why_nothing_is_reported(tmp_path: Path) -> None:
    plain = enlarger.generate("a cat", model=tiny.sd1_folder(), **GENERATE)
    assert plain.flagged is None and plain.notes == ()
    folder, _ = folder_with_checker(tmp_path, above=0.6)
    shutil.rmtree(folder / "safety_checker")
    made = enlarger.generate("a cat", model=folder, **GENERATE)
    assert made.flagged is None
    assert made.notes == (f"not checked for unsafe content: {folder} has no safety_checker",)


def test_what_is_not_flagged(tmp_path: Path) -> None:
    folder, _ = folder_with_checker(tmp_path, above=-0.9)
    made = enlarger.generate("a cat", model=folder, **GENERATE)
    assert made.flagged == (False,) and made.notes == ()
