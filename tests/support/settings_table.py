"""The tables of docs/service.md that are made from the code: the settings, and the metrics.

`python -m tests.support.settings_table` writes them into the document.
"""

import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from enlarger.service.metrics import Metrics
from enlarger.service.settings import Bounds, ModelSettings, Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "service.md"
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def tables() -> dict[str, str]:
    """Each table by the name in the marks around it."""
    return {
        "settings": settings_table(Settings),
        "models": settings_table(ModelSettings),
        "bounds": settings_table(Bounds),
        "metrics": metrics_table(),
    }


def settings_table(kind: type[BaseModel]) -> str:
    rows = ["| setting | value | default | |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        rows.append(f"| `{name}` | {kind_of(field.annotation)} | {default_of(field.default)} | {field.description} |")
    return "\n".join(rows)


def kind_of(annotation: Any) -> str:
    """A type in words."""
    if annotation in WORDS:
        return WORDS[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(parts)
    if origin in (Union, types.UnionType):
        return ", or ".join(kind_of(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"list of {kind_of(parts[0])}" if parts[-1] is Ellipsis else f"[{', '.join(map(kind_of, parts))}]"
    return "table"


def default_of(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default)
    if default is None or isinstance(default, BaseModel):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def metrics_table() -> str:
    rows = ["| metric | kind | |", "|---|---|---|"]
    for family in Metrics().registry.collect():
        if family.name.startswith("enlarger_"):
            end = "_total" if family.type == "counter" else ""
            rows.append(f"| `{family.name}{end}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)


def marked(name: str) -> re.Pattern[str]:
    """A table with its marks."""
    return re.compile(rf"(<!-- table: {name} -->\n)(.*?)(<!-- end -->)", re.S)


def filled(text: str) -> str:
    """The document with its tables as the code has them."""
    for name, table in tables().items():
        text, count = marked(name).subn(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[3]}", text)
        assert count == 1, f"docs/service.md has {count} places for the table {name}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))
