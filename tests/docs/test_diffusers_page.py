"""The table of docs/diffusers.md is that of the classes; `python -m tests.docs.test_diffusers_page` writes it anew."""

import inspect
from pathlib import Path
from typing import Any

import enlarger.diffusers as face
from enlarger.diffusers.auto import PIPELINE_CLASSES
from enlarger.diffusers.models import MODELS
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
BEGIN, END = "<!-- generated from the classes -->", "<!-- end -->"
ROOT = (object, dict)


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


def test_the_table_is_that_of_the_classes() -> None:
    text = PAGE.read_text("utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == rows()


if __name__ == "__main__":
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{rows()}\n{END}{rest.split(END)[1]}", "utf-8")
