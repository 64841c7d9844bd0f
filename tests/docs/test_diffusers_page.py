"""The table of docs/diffusers.md is that of the classes; `python -m tests.docs.test_diffusers_page` writes it anew."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import enlarger.diffusers as face
from enlarger.diffusers.loaders.loading import REFUSED
from enlarger.diffusers.models.modules import MODELS
from enlarger.diffusers.pipelines.auto_pipeline import PIPELINE_CLASSES
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES
from enlarger.diffusers.unsupported import INSTEAD, METHODS
from enlarger.errors import Unsupported

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
BEGIN, LEFT_OUT, END = "<!-- generated from the classes -->", "<!-- generated from what is refused -->", "<!-- end -->"


def methods(kind: type[Any]) -> list[str]:
    found = [n for n, f in inspect.getmembers(kind, inspect.isroutine) if not n.startswith("_")]
    return [
        n for n in found if any(n in vars(k) and k.__module__.startswith("enlarger.diffusers") for k in kind.__mro__)
    ]


def rows() -> str:
    """A row for each kind of class: its members, and what they have in common."""
    lines = ["| kind | classes | methods |", "|---|---|---|"]
    groups = {
        "pipelines": PIPELINE_CLASSES,
        "schedulers": SCHEDULER_CLASSES,
        "models": {**MODELS, "CLIPTokenizer": face.CLIPTokenizer},
    }
    for name, classes in groups.items():
        common = sorted(set.intersection(*(set(methods(kind)) for kind in classes.values())))
        lines.append(f"| {name} | {', '.join(sorted(classes))} | {', '.join(common)} |")
    return "\n".join(lines)


def left_out() -> str:
    """A row for each thing that raises one sentence, with the methods that raise it."""
    named = {what: f"{what}: {', '.join(f'`{name}`' for name in names)}" for what, names in METHODS.items()}
    refused = {named.get(what, what): said for what, said in INSTEAD.items()}
    refused |= {f"`{name}`": said for name, said in REFUSED.items()}
    return "\n".join(["| what | instead |", "|---|---|", *(f"| {what} | {said} |" for what, said in refused.items())])


def test_names_that_are_not_here_say_what_to_do() -> None:
    with pytest.raises(ImportError, match="StableDiffusionControlNetPipeline: there are no ControlNets; the depth"):
        from enlarger.diffusers import StableDiffusionControlNetPipeline  # noqa: F401  # pyright: ignore
    with pytest.raises(ImportError, match="has no FluxPipeline: import it from diffusers"):
        _ = face.FluxPipeline
    assert not hasattr(face, "nothing")
    pipe = object.__new__(face.StableDiffusionPipeline)
    with pytest.raises(Unsupported, match="load_ip_adapter is not available: there are no IP adapters; LoRA"):
        pipe.load_ip_adapter("a")
    with pytest.raises(Unsupported, match="push_to_hub is not available: save to a folder"):
        pipe.push_to_hub("a")
    with pytest.raises(
        Unsupported, match="enable_layerwise_casting is not available: weights are kept in the type they"
    ):
        object.__new__(face.UNet2DConditionModel).enable_layerwise_casting()


def test_the_table_is_that_of_the_classes() -> None:
    text = PAGE.read_text("utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == rows()
    assert text.split(LEFT_OUT)[1].split(END)[0].strip() == left_out()


if __name__ == "__main__":
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{rows()}\n{END}{rest.split(END, 1)[1]}", "utf-8")
    before, rest = PAGE.read_text("utf-8").split(LEFT_OUT)
    PAGE.write_text(f"{before}{LEFT_OUT}\n{left_out()}\n{END}{rest.split(END, 1)[1]}", "utf-8")
