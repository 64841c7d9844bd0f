"""What other programs' prompts mean and ours do not is said, and nothing is said of plain brackets and words."""

import pytest

from enlarger.diffusion.guidance import Guidance
from enlarger.tasks.latent_diffusion.conditioning import PromptSpec
from enlarger.text.prompt_words import unheard_words


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a cat BREAK a dog", "BREAK is read as words: elsewhere it begins a new chunk of 75 tokens, here it does not"),
        ("a cat AND a dog", "AND is read as words: elsewhere it mixes several prompts, here it does not"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5] is read as words: elsewhere it changes the prompt on the way, here it "),
        ("a [cat::10] b", "[cat::10] is read as words: elsewhere it changes the prompt on the way, here it does not"),
        ("a [cat:.3]", "[cat:.3] is read as words: elsewhere it changes the prompt on the way, here it does not"),
        ("a [cat|dog]", "[cat|dog] is read as words: elsewhere it takes turns from step to step, here it does not"),
        ("a {cat|dog}", "{cat|dog} is read as words: elsewhere it draws one of several, here it does not"),
        ("a __animal__", "__animal__ is read as words: elsewhere it draws a line of a file, here it does not"),
        ("a (cat:dog)", "(cat:dog) is read as words: elsewhere it has a weight of 1.1, here it does not"),
        ("a (cat:1,2)", "(cat:1,2) is read as words: elsewhere it has a weight of 1.1, here it does not"),
        ("a (cat: much)", "(cat: much) is read as words: elsewhere it has a weight of 1.1, here it does not"),
        ("a (cat", "(cat is read as words: elsewhere its bracket weighs all to the end, here it does not"),
        (r"a (cat (b) \)", r"(cat (b) \) is read as words: elsewhere its bracket weighs all to the end, here"),
        ("a embedding:bad-hands, b", "embedding:bad-hands is read as words: elsewhere it is a textual inversion, here"),
        ("[" + "x" * 90 + ":b:1]", f"[{'x' * 35} ... is read as words: elsewhere it changes"),
    ],
    ids=["BREAK", "AND", "from to", "until", "from", "turns", "one of", "file", "colon", "comma", "no number", "opened",
         "escaped", "embedding", "long"],
)  # fmt: skip
def test_words_of_other_programs_are_said(prompt: str, note: str) -> None:
    (found,) = unheard_words(prompt)
    assert found.startswith(note)
    spec = PromptSpec(prompt, "", Guidance(7.5))
    assert spec.notes == (found,) and PromptSpec("", prompt, Guidance(7.5)).notes == (found,)
    assert PromptSpec(prompt, prompt, Guidance(7.5)).notes == (found,)


@pytest.mark.parametrize(
    "prompt",
    ["", "a cat (red:1.2)", "[a dog]", "salt and pepper", "breakfast", r"\[a:b:0.5\]", "at 12:30", "a_b", "{x}",
     "a [b: c]", ":)", r"\(a:b\)", "(a b)", "((x:1.2) y:.5)", "(a:b:1.5)", "an embedding: fine", r"(a \(b\))"],
)  # fmt: skip
def test_nothing_is_said_of_plain_words(prompt: str) -> None:
    assert unheard_words(prompt) == ()


@pytest.mark.parametrize(
    "prompt",
    [
        "[" + ":" * 16_000 + "1" * 16_000,
        "[a:" + "1" * 32_000 + "x]",
        "{" + "|" * 32_000,
        "[" * 32_000,
        "__a-" * 8_000,
        "__a" + "_" * 32_000 + "a",
        "[a:" + " " * 32_000 + "]",
        "()" * 16_000,
    ],
    ids=["colons", "digits", "choices", "brackets", "files", "underscores", "spaces",
         "round"],
)  # fmt: skip
def test_a_long_prompt_is_read_at_once(prompt: str) -> None:
    assert unheard_words(prompt) == ()
