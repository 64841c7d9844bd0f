"""Words of AUTOMATIC1111's prompts that mean nothing here: they are read as words, and that is said. Without torch."""

import re
from collections.abc import Callable

MAX_SHOWN = 40  # characters of a prompt in a note
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
BRACKETS, BRACES = r"(?<!\\)\[([^\[\]]*)\]", r"(?<!\\)\{([^{}]*)\}"  # the innermost; each text is read once
ROUND_BRACKET = re.compile(r"\\[()]|[()]")  # an escaped one is text
PARENTHESES = r"(?<!\\)\(([^()]*)\)"


def unheard_words(prompt: str) -> tuple[str, ...]:
    """A note for each kind of word in a prompt that has a meaning in other programs alone."""
    notes = list[str]()
    for pattern, is_meant, meaning in OTHER_MEANINGS:
        found = next((match[0] for match in re.finditer(pattern, prompt) if is_meant(match[match.re.groups])), None)
        if found is not None:
            notes.append(f"{shortened(found)} is read as words: elsewhere it {meaning}, here it does not")
    if (opened := _opened_only(prompt)) is not None:
        notes.append(
            f"{shortened(opened)} is read as words: elsewhere its bracket weighs all to the end, here it does not"
        )
    return tuple(notes)


def _opened_only(prompt: str) -> str | None:
    """The prompt from the first round bracket on that is not closed; None where all are."""
    places = list[int]()
    for match in ROUND_BRACKET.finditer(prompt):
        if match[0] == "(":
            places.append(match.start())
        elif match[0] == ")" and places:
            places.pop()
    return prompt[places[0] :] if places else None


def _is_word(text: str) -> bool:
    return bool(text)


def _ends_in_number(text: str) -> bool:
    _, colon, last = text.rpartition(":")
    return bool(colon) and NUMBER.fullmatch(last.strip()) is not None


def _has_colon_without_number(text: str) -> bool:
    return ":" in text and not _ends_in_number(text)


def _has_choice(text: str) -> bool:
    return "|" in text


def shortened(text: str) -> str:
    """A part of a prompt as a note shows it."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


OTHER_MEANINGS: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    (r"\bBREAK\b", _is_word, "begins a new chunk of 75 tokens"),
    (r"\bAND\b", _is_word, "mixes several prompts"),
    (BRACKETS, _ends_in_number, "changes the prompt on the way"),
    (BRACKETS, _has_choice, "takes turns from step to step"),
    (PARENTHESES, _has_colon_without_number, "has a weight of 1.1"),
    (r"\bembedding:[^\s,()\[\]]+", _is_word, "is a textual inversion"),
    (BRACES, _has_choice, "draws one of several"),
    (r"\b__(?:(?!__)[\w/*-])+__+\b", _is_word, "draws a line of a file"),
)
"""Patterns, which of the texts in them are meant, and what they mean elsewhere."""
