"""What is printed for people: texts and names from files are shown on one line each, and never obeyed by a terminal."""

import sys
import unicodedata
from collections.abc import Iterable
from typing import TextIO

JOINERS = "\u200c\u200d"  # a part of words and emoji
UNPRINTED = ("Cc", "Cf", "Zl", "Zp")  # control characters, those that turn the direction of text, ends of lines


def printable(text: object) -> str:
    """A name or text in one line that a terminal only shows; what it would obey stands there as `\\x1b` does."""
    return "".join(_escape(character) for character in str(text))


def print_lines(texts: Iterable[object], file: TextIO | None = None) -> None:
    """Print a line for each text, at once."""
    for text in texts:
        print(printable(text), file=sys.stdout if file is None else file, flush=True)


def _escape(character: str) -> str:
    if character.isprintable() or character in JOINERS or unicodedata.category(character) not in UNPRINTED:
        return character
    return character.encode("unicode_escape").decode("ascii")
