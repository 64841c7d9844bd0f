"""Every public method of diffusers' classes is here, or raises one sentence that says what to do."""

import inspect
from typing import Any

import diffusers
import pytest

import enlarger.diffusers as face
from enlarger.diffusers.pipelines.auto_pipeline import PIPELINE_CLASSES
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES
from enlarger.diffusers.unsupported import INSTEAD, METHODS, Refusal
from enlarger.errors import Unsupported

CLASSES = ["DiffusionPipeline", *PIPELINE_CLASSES, *SCHEDULER_CLASSES]
MODELS = ["AutoencoderKL", "AutoencoderTiny", "UNet2DConditionModel"]
SET_WHEN_MADE = {"config"}  # of schedulers


@pytest.mark.parametrize("name", CLASSES + MODELS)
def test_no_public_name_is_missing(name: str) -> None:
    ours, theirs = getattr(face, name), getattr(diffusers, name)
    public = {found for found in dir(theirs) if not found.startswith("_")}
    assert public - set(dir(ours)) - SET_WHEN_MADE == set()


@pytest.mark.parametrize("name", CLASSES + MODELS)
def test_what_is_left_out_says_what_to_do(name: str) -> None:
    kind: Any = getattr(face, name)
    left_out = [found for found in dir(kind) if isinstance(inspect.getattr_static(kind, found), Refusal)]
    assert left_out
    for method in left_out:
        with pytest.raises(Unsupported, match=rf"^{method} is not available: [^\n]+$"):
            getattr(object.__new__(kind), method)(1, adapter_name="a")


def test_the_kinds_have_sentences() -> None:
    assert METHODS.keys() <= INSTEAD.keys()
