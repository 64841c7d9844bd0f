"""Licences: what a model card says of them, and that the user has accepted one."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from enlarger.hub.fetch import write_small_file
from enlarger.strict_json import read_json

ACCEPTED_FILE = "licences.json"  # in each model's folder
MAX_HEADING_DEPTH = 6
OUT_OF_SCOPE_HEADING = re.compile(r"out.of.scope|misuse|malicious|prohibited", re.IGNORECASE)
MAX_CARD_LENGTH = 6000  # characters of a card that are shown
MAX_READ_LENGTH = 1 << 20  # characters of a card that are looked at


@dataclass(frozen=True)
class Licence:
    """The licence that a model card names, and what it says the model is not for; "" where it says nothing."""

    name: str
    link: str
    out_of_scope: str


def read_licence(card: str) -> Licence:
    """The licence in a model card: README.md with front matter."""
    text = card[:MAX_READ_LENGTH].replace("\r\n", "\n").removeprefix("\ufeff")
    front_matter, body = "", text
    if text.startswith("---"):
        front_matter, _, body = text[3:].partition("\n---")
    name = (
        _front_matter_field(front_matter, "license_name")
        or _front_matter_field(front_matter, "license")
        or _licence_line(body)
    )
    return Licence(name, _front_matter_field(front_matter, "license_link"), out_of_scope_sections(body))


def _front_matter_field(front_matter: str, key: str) -> str:
    """A value of the front matter; of a list, the first."""
    match = re.search(rf"(?:^|\s){key}:[ \t]*(?:\n\s*-\s*)?[\"']?([^\s\"']+)", front_matter)
    return _printable(match[1]) if match is not None else ""


def _licence_line(body: str) -> str:
    """Where there is no front matter: the line `License: ...` of the card."""
    match = re.search(r"licen[cs]e:\**[ \t]*\[?([^\]\n]+)", body, re.IGNORECASE)
    return _printable(match[1]).strip(" *") if match is not None else ""


def out_of_scope_sections(body: str) -> str:
    """The sections of a card whose heading is about misuse or uses out of scope, with the sections in them."""
    kept_lines: list[str] = []
    depth = 0  # of the heading whose section is kept, 0 for none
    for line in body.splitlines():
        heading_depth, heading = _heading(line)
        if heading_depth:
            is_subsection = depth and heading_depth > depth
            depth = depth if is_subsection else (heading_depth if OUT_OF_SCOPE_HEADING.search(heading) else 0)
        if depth:
            kept_lines.append(_printable(line))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept_lines)).strip()
    return text if len(text) <= MAX_CARD_LENGTH else f"{text[:MAX_CARD_LENGTH]} ... (cut; the whole is in README.md)"


def _heading(line: str) -> tuple[int, str]:
    """The depth of a heading and its words; depth 0 for any other line. Each character is looked at once."""
    text = line.lstrip("#")
    depth = len(line) - len(text)
    is_heading = 1 <= depth <= MAX_HEADING_DEPTH and text[:1].isspace() and not text.isspace()
    return (depth, text.strip().rstrip("#").rstrip()) if is_heading else (0, "")


def _printable(text: str) -> str:
    """Without the characters that could command a terminal."""
    return "".join(c for c in text if c.isprintable())


def is_accepted(folder: Path, name: str) -> bool:
    """Whether the licence of the model in this folder was accepted before."""
    path = folder / ACCEPTED_FILE
    return path.is_file() and name in read_json(path)


def record_acceptance(folder: Path, name: str, details: Mapping[str, str]) -> None:
    """Record that it was, with the date."""
    path = folder / ACCEPTED_FILE
    accepted = read_json(path) if path.is_file() else {}
    entry = {"licence": name, "date": datetime.now(UTC).isoformat(timespec="seconds"), **details}
    write_small_file(path, (json.dumps(accepted | {name: entry}, indent=1) + "\n").encode())
