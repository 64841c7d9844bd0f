"""Words of AUTOMATIC1111's prompts that mean nothing here: they are read as words, and that is said. Without torch."""

import re

MAX_SHOWN = 40  # characters of a prompt in a note
NUMBER = r"\s*[0-9]*\.?[0-9]+\s*"
OTHER_MEANINGS: dict[str, str] = {  # a pattern, and what it means elsewhere
    r"\bBREAK\b": "begins a new chunk of 75 tokens",
    r"\bAND\b": "mixes several prompts",
    rf"(?<!\\)\[[^\[\]]*:[^\[\]]*:{NUMBER}\]|(?<!\\)\[[^\[\]:]*:{NUMBER}\]": "changes the prompt on the way",
    r"(?<!\\)\[[^\[\]]*\|[^\[\]]*\]": "takes turns from step to step",
    r"(?<!\\)\{[^{}]*\|[^{}]*\}": "draws one of several",
    r"\b__[\w/*-]+__\b": "draws a line of a file",
}


def unheard_words(prompt: str) -> tuple[str, ...]:
    """A note for each kind of word in a prompt that has a meaning in other programs alone."""
    matches = {meaning: re.search(pattern, prompt) for pattern, meaning in OTHER_MEANINGS.items()}
    return tuple(
        f"{_shown(match[0])} is read as words: elsewhere it {meaning}, here it does not"
        for meaning, match in matches.items()
        if match is not None
    )


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."
