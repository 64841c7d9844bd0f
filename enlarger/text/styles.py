"""Styles: named pieces of prompts in a CSV file, as AUTOMATIC1111 keeps them in `styles.csv`; without torch."""

import csv
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError

STYLES_FILE = "styles.csv"
PLACEHOLDER = "{prompt}"  # where the prompt goes in a style; without one the style comes behind it
MAX_BYTES = 256 << 10  # of the file
MAX_CHARACTERS = 32_000  # of a prompt with its styles


@dataclass(frozen=True)
class Style:
    """What a style adds to a prompt and to a negative prompt."""

    prompt: str = ""
    negative: str = ""


def read_styles(path: Path) -> dict[str, Style]:
    """The styles of a file with the columns name, prompt and negative_prompt (or text, as it once was called).

    Raises InputError for a file that cannot be read or has no column of names.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: found more than {MAX_BYTES:,} bytes, expected a CSV file of styles")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV file of styles ({error})") from error
    if rows and "name" not in rows[0]:
        columns = ", ".join(str(name) for name in rows[0])
        raise InputError(f"{path}: found the columns {columns}, expected name, prompt, negative_prompt")
    return {
        row["name"]: Style(row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
        if row["name"]
    }


def apply_styles(prompt: str, negative: str, names: Sequence[str], styles: Mapping[str, Style]) -> tuple[str, str]:
    """A prompt and a negative prompt with styles, one after another.

    Raises InputError for a name that is none's or given twice, and where the text becomes too long.
    """
    for place, name in enumerate(names):
        if name not in styles:
            raise InputError(unknown_name("style", name, list(styles)))
        if name in names[:place]:
            raise InputError(f"the style {name!r} is named twice, expected each once; leave one out")
        prompt = _merge(prompt, styles[name].prompt)
        negative = _merge(negative, styles[name].negative)
    return prompt, negative


def unknown_name(what: str, name: str, known: Sequence[str]) -> str:
    """That nothing has a name, and which names are like it."""
    near = difflib.get_close_matches(name, known, 3, 0.5) or sorted(known)[:5]
    found = f"there are {len(known)}, {', '.join(near)} among them" if known else "there are none"
    return f"no {what} is called {name!r}; {found}"


def _merge(text: str, style: str) -> str:
    length = len(style) + max(style.count(PLACEHOLDER), 1) * len(text)
    if length > MAX_CHARACTERS:
        raise InputError(f"with its styles the prompt has {length:,} characters, expected at most {MAX_CHARACTERS:,}")
    if PLACEHOLDER in style:
        return style.replace(PLACEHOLDER, text)
    return ", ".join(part for part in (text.strip(), style.strip()) if part)
