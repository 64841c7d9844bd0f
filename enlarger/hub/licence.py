"""Licences: what a model card says of them, and that the user has accepted one."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enlarger.hub.fetch import write_whole
from enlarger.jsonfile import read_json

ACCEPTED = "licences.json"  # in each model's folder
HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$")
USES = re.compile(r"out.of.scope|misuse|malicious|prohibited", re.IGNORECASE)
LONGEST = 6000  # characters of a card that are shown


@dataclass(frozen=True)
class Licence:
    """The licence that a model card names, and what it says the model is not for; "" where it says nothing."""

    name: str
    link: str
    uses: str


def read_licence(card: str) -> Licence:
    """The licence in a model card: README.md with front matter."""
    text = card.replace("\r\n", "\n").removeprefix("\ufeff")
    front, body = "", text
    if text.startswith("---"):
        front, _, body = text[3:].partition("\n---")
    name = _field(front, "license_name") or _field(front, "license") or _in_text(body)
    return Licence(name, _field(front, "license_link"), out_of_scope(body))


def _field(front: str, key: str) -> str:
    """A value of the front matter; of a list, the first."""
    match = re.search(rf"(?:^|\s){key}:[ \t]*(?:\n\s*-\s*)?[\"']?([^\s\"']+)", front)
    return _plain(match[1]) if match is not None else ""


def _in_text(body: str) -> str:
    """Where there is no front matter: the line `License: ...` of the card."""
    match = re.search(r"licen[cs]e:\**[ \t]*\[?([^\]\n]+)", body, re.IGNORECASE)
    return _plain(match[1]).strip(" *") if match is not None else ""


def out_of_scope(body: str) -> str:
    """The sections of a card whose heading is about misuse or uses out of scope, with the sections in them."""
    kept: list[str] = []
    depth = 0  # of the heading that is being kept, 0 for none
    for line in body.splitlines():
        heading = HEADING.match(line)
        if heading is not None:
            inside = depth and len(heading[1]) > depth
            depth = depth if inside else (len(heading[1]) if USES.search(heading[2]) else 0)
        if depth:
            kept.append(_plain(line))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... (cut; the whole is in README.md)"


def _plain(text: str) -> str:
    """Without the characters that could command a terminal."""
    return "".join(c for c in text if c.isprintable())


def accepted(folder: Path, name: str) -> bool:
    """Whether the licence of the model in this folder was accepted before."""
    path = folder / ACCEPTED
    return path.is_file() and name in read_json(path)


def accept(folder: Path, name: str, about: dict[str, Any]) -> None:
    """Record that it was, with the date."""
    path = folder / ACCEPTED
    known = read_json(path) if path.is_file() else {}
    entry = {"licence": name, "date": datetime.now(UTC).isoformat(timespec="seconds"), **about}
    write_whole(path, (json.dumps(known | {name: entry}, indent=1) + "\n").encode())
