"""Prompt weights: the syntax, and what they do to the features of short and long prompts."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enlarger.diffusion.guidance import Guidance
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from enlarger.tasks.latent_diffusion.conditioning import PromptSpec
from enlarger.text.encode import encode_prompts
from enlarger.text.tokenize import Tokenizer
from enlarger.text.weights import WeightedText, apply_token_weights, parse_prompt_attention, unusual_weights
from tests.support.clip_files import small_tokenizer_folder
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

TEXT = ClipTextConfig(32, 3, 4, 64, "quick_gelu", vocab_size=64)
PARSED = {
    "": [],
    "a cat": [("a cat", 1)],
    "a (red) cat": [("a ", 1), ("red", 1.1), (" cat", 1)],
    "((a))": [("a", 1.1**2)],
    "[a]": [("a", 1 / 1.1)],
    "[[a]]": [("a", 1.1**-2)],
    "([a])": [("a", 1)],
    "(a:1.2)": [("a", 1.2)],
    "(a:0)": [("a", 0)],
    "(a:-1.5)": [("a", -1.5)],
    "(a:.5) (b:2.)": [("a", 0.5), (" ", 1), ("b", 2)],
    "(a : 1.2 )b": [("a ", 1.2), ("b", 1)],
    "(a:+1e-1)": [("a", 0.1)],
    "((a:1.5) b)": [("a", 1.65), (" b", 1.1)],
    "((a (b:2)) [c]:0.5)": [("a ", 0.55), ("b", 1.1), (" ", 0.5), ("c", 0.5 / 1.1)],
    "(a)(b)": [("ab", 1.1)],
    "(a:b:1.2)": [("a:b", 1.2)],
    "a:1.2": [("a:1.2", 1)],
    "[a:1.2]": [("a:1.2", 1 / 1.1)],
    "(a:b)": [("(a:b)", 1)],
    "((a:b))": [("(a:b)", 1.1)],
    "((a:b):1.2)": [("(a:b)", 1.2)],
    "(10:30 (b))": [("(10:30 ", 1), ("b", 1.1), (")", 1)],
    "(a": [("(a", 1)],
    "a)": [("a)", 1)],
    "a:1.2)": [("a:1.2)", 1)],
    "(a]": [("(a]", 1)],
    "(a [b) c]": [("a [b", 1.1), (" c]", 1)],
    "(a [b:c) d": [("(a [b:c) d", 1)],
    "((a)": [("(", 1), ("a", 1.1)],
    ":) ()": [(":) ", 1)],
    r"\(a\) \[b\]": [("(a) [b]", 1)],
    r"(\(a\):1.2)": [("(a)", 1.2)],
    r"(a\:1.2)": [("a\\", 1.2)],
    r"\\(a)": [("\\", 1), ("a", 1.1)],
    r"a \ b": [("a \\ b", 1)],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(small_tokenizer_folder(tmp_path_factory.mktemp("text") / "tokenizer"))


@pytest.fixture(scope="module")
def encoder() -> ClipText:
    return randomise(ClipText(TEXT))


@pytest.mark.parametrize("text", PARSED)
def test_the_syntax(text: str) -> None:
    found = parse_prompt_attention(text)
    assert [part.text for part in found] == [part for part, _ in PARSED[text]]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in PARSED[text]])


@pytest.mark.parametrize(
    ("text", "weight", "note"),
    [
        ("(a:12)", 12, "'a' has a weight of 12: pictures fall apart far beyond 2"),
        ("((a:9):9) b", 81, "'a' has a weight of 81: pictures"),
        ("(a:-10.5)", -10.5, "'a' has a weight of -10.5: pictures"),
        ("(a:1e9)", 100, "'a' has a weight of 100, the most that is applied: pictures"),
        ("(x (a:99):-99)", -100, "'a' has a weight of -100, the most that is applied: pictures"),
        ("(a:10)", 10, ""),
    ],
)
def test_unusual_weights_are_applied_and_said(text: str, weight: float, note: str) -> None:
    assert weight in [part.weight for part in parse_prompt_attention(text)]
    found = unusual_weights(text)
    assert len(found) == bool(note) and "".join(found).startswith(note)
    assert PromptSpec(text, "", Guidance(7.5)).notes == PromptSpec("", text, Guidance(7.5)).notes == found


@pytest.mark.parametrize("text", ["(a:nan)", "(a:inf)", "(a:-infinity)"])
def test_words_that_python_takes_for_numbers_are_words(text: str) -> None:
    assert parse_prompt_attention(text) == (WeightedText(text, 1),)


def test_many_brackets_are_read_quickly() -> None:
    assert parse_prompt_attention("(" * 20000)[0].text == "(" * 20000
    assert parse_prompt_attention("[" * 20000 + ")" * 20000)[0].weight == 1
    assert parse_prompt_attention("([" * 5000 + "a" + "])" * 5000)[0].weight == pytest.approx(1)
    assert parse_prompt_attention("(" * 50 + "a" + ")" * 50)[0].weight == 100


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("()[]:\\a1.2 \u0301É😀\ud800"), max_size=30))
def test_any_text_is_read(tokenizer: Tokenizer, text: str) -> None:
    parts = parse_prompt_attention(text)
    assert all(part.text for part in parts)
    assert all(one.weight != other.weight for one, other in pairwise(parts))
    tokens = tokenizer([text], weighted=True)
    assert tokens.ids.equal(tokenizer(["".join(part.text for part in parts)]).ids)
    assert tokens.weights.shape == (1, 77)


def test_tokens_have_the_weight_of_their_first_character(tokenizer: Tokenizer) -> None:
    row = tokenizer(["a (the:2) cat(s:3) (É:0.5) b"], weighted=True)
    assert row.ids.equal(tokenizer(["a the cats É b"]).ids)
    assert row.weights[0, :7].tolist() == [1, 1, 2, 1, 1, 1, 3]
    assert row.weights[0, row.weights[0] == 0.5].numel() >= 1 and row.weights[0, -1] == 1
    assert tokenizer(["a (the:2)"]).weights.eq(1).all()


def test_weight_one_changes_no_bit(tokenizer: Tokenizer, encoder: ClipText) -> None:
    plain = encode_prompts(tokenizer, encoder, ["a red cat", "the dog"])
    for texts in (["a red cat", "the dog"], ["a (red:1) cat", "([the]) dog"], ["a (r:1.0)ed cat", "the dog"]):
        found = encode_prompts(tokenizer, encoder, texts, weighted=True)
        assert found.tokens.equal(plain.tokens) and found.pooled.equal(plain.pooled) and found.mask.equal(plain.mask)


def test_unweighted_tokens_keep_their_bits(tokenizer: Tokenizer, encoder: ClipText) -> None:
    plain = encode_prompts(tokenizer, encoder, ["a b c", "d"])
    found = encode_prompts(tokenizer, encoder, ["a (b:1.5) c", "d"], weighted=True)
    same = [(found.tokens[0, k] == plain.tokens[0, k]).all().item() for k in range(77)]
    assert [k for k in range(77) if not same[k]] == [2]
    assert found.tokens[1].equal(plain.tokens[1]) and found.pooled.equal(plain.pooled)


@pytest.mark.parametrize("layer", ["last_norm", "last", "penultimate"])
def test_weights_lead_away_from_the_empty_prompt(tokenizer: Tokenizer, encoder: ClipText, layer: str) -> None:
    def tokens(text: str, weighted: bool = True) -> torch.Tensor:
        return encode_prompts(tokenizer, encoder, [text], layer=layer, weighted=weighted).tokens[0]  # type: ignore[arg-type] - a layer

    plain, empty = tokens("a b c", False), tokens("", False)
    assert tokens("a (b:0) c")[2].equal(empty[2])
    for weight in (-2, 0.5, 1.1, 10):
        assert_close(tokens(f"a (b:{weight}) c")[2], empty[2] + weight * (plain[2] - empty[2]), 1e-5)


def test_without_the_option_brackets_are_text(tokenizer: Tokenizer, encoder: ClipText) -> None:
    plain, weighted = (encode_prompts(tokenizer, encoder, ["a (b:1.5) c"], weighted=on) for on in (False, True))
    assert plain.mask.sum() > weighted.mask.sum()


def test_weights_follow_the_pieces_of_long_prompts(tokenizer: Tokenizer, encoder: ClipText) -> None:
    text = "a " * 73 + "(b c d e:0.5) " + "f " * 5  # 75 fit: two of the weighted tokens on either side of the border
    rows = tokenizer.tokenize_in_chunks(text, weighted=True)
    assert [row.nonzero()[:, 0].tolist() for row in rows.weights.ne(1)] == [[74, 75], [1, 2]]
    found = encode_prompts(tokenizer, encoder, [text, "(b:0)"], long_prompt=True, weighted=True).tokens
    plain = encode_prompts(tokenizer, encoder, ["a " * 73 + "b c d e " + "f " * 5, "b"], long_prompt=True).tokens
    empty = encode_prompts(tokenizer, encoder, [""]).tokens[0]
    changed = (found != plain).any(dim=2)
    assert changed.nonzero().tolist() == [[0, 74], [0, 75], [0, 78], [0, 79], [1, 1]]
    assert_close(found[0, [74, 75]], (empty[[74, 75]] + plain[0, [74, 75]]) / 2, 1e-6)
    assert_close(found[0, [78, 79]], (empty[[1, 2]] + plain[0, [78, 79]]) / 2, 1e-6)
    assert found[1, 1].equal(empty[1])


def test_cut_prompts_name_the_text_without_brackets(tokenizer: Tokenizer, encoder: ClipText) -> None:
    with pytest.warns(UserWarning, match=r"longer than 75 tokens; left out: 'red dog'$"):
        encode_prompts(tokenizer, encoder, ["a " * 75 + "(red:1.2) dog"], weighted=True)


def test_entities_are_read_after_the_brackets(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(small_tokenizer_folder(tmp_path / "t"), openai_compatible=True)
    row = tokenizer(["&lt;a (b:2) &#40;c&#41;"], weighted=True)
    assert row.ids.equal(tokenizer(["<a b (c)"]).ids) and row.weights.ne(1).sum() == 1


def test_halves_are_interpolated_in_single_precision() -> None:
    features, empty, weights = normal(2, 5, 8), normal(1, 5, 8, seed=2), torch.full((2, 5), 3.0)
    weights[:, 0] = 1
    half = apply_token_weights(features.half(), empty.half(), weights)
    assert half.dtype == torch.float16 and half[:, 0].equal(features.half()[:, 0])
    exact = apply_token_weights(features.half().float(), empty.half().float(), weights)
    assert_close(half, exact.half(), 0)
