"""Words of AUTOMATIC1111's prompts that mean nothing here: they are read as words, and that is said. Without torch."""

import re
from collections.abc import Callable

MAX_SHOWN = 40  # characters of a prompt in a note
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
BRACKETS, BRACES = r"(?<!\\)\[([^\[\]]*)\]", r"(?<!\\)\{([^{}]*)\}"  # the innermost; each text is read once


def unheard_words(prompt: str) -> tuple[str, ...]:
    """A note for each kind of word in a prompt that has a meaning in other programs alone."""
    notes = list[str]()
    for pattern, is_meant, meaning in OTHER_MEANINGS:
        found = next((match[0] for match in re.finditer(pattern, prompt) if is_meant(match[match.re.groups])), None)
        if found is not None:
            notes.append(f"{_shown(found)} is read as words: elsewhere it {meaning}, here it does not")
    return tuple(notes)


def _is_word(text: str) -> bool:
    return bool(text)


def _ends_in_number(text: str) -> bool:
    _, colon, last = text.rpartition(":")
    return bool(colon) and NUMBER.fullmatch(last.strip()) is not None


def _has_choice(text: str) -> bool:
    return "|" in text


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


OTHER_MEANINGS: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    (r"\bBREAK\b", _is_word, "begins a new chunk of 75 tokens"),
    (r"\bAND\b", _is_word, "mixes several prompts"),
    (BRACKETS, _ends_in_number, "changes the prompt on the way"),
    (BRACKETS, _has_choice, "takes turns from step to step"),
    (BRACES, _has_choice, "draws one of several"),
    (r"\b__(?:(?!__)[\w/*-])+__+\b", _is_word, "draws a line of a file"),
)
"""Patterns, which of the texts in them are meant, and what they mean elsewhere."""
