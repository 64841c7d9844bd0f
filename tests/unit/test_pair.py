"""SDXL's text: two encoders side by side, their pieces, and what is refused."""

from typing import Any

import pytest

from enlarger.errors import InputError
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from enlarger.text.encode import encode_prompts, encode_prompts_xl
from enlarger.text.tokenize import Tokenizer
from tests.support.clip_files import small_tokenizer_folder
from tests.support.close import assert_close
from tests.support.random_weights import randomise

FIRST = ClipTextConfig(32, 3, 4, 64, "quick_gelu", vocab_size=64)
SECOND = ClipTextConfig(48, 2, 4, 64, "gelu", vocab_size=64, projection_dim=24)
LONG = "a b c d e " * 20  # 100 tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tokenizer = Tokenizer.from_folder(small_tokenizer_folder(tmp_path_factory.mktemp("text") / "tokenizer"))
    encoders = (randomise(ClipText(FIRST)), randomise(ClipText(SECOND), 1))
    return {"tokenizers": (tokenizer, tokenizer), "encoders": encoders}


def alone(pair: dict[str, Any], i: int, texts: list[str], **options: Any) -> Any:
    return encode_prompts(pair["tokenizers"][i], pair["encoders"][i], texts, layer="penultimate", **options)


@pytest.mark.parametrize("options", [{}, {"weighted": True}, {"clip_skip": 1}, {"long_prompt": True}])
def test_features_lie_side_by_side(pair: dict[str, Any], options: dict[str, Any]) -> None:
    texts = ["a (cat:1.5)", "d"], ["b", "the dog"]
    found = encode_prompts_xl(**pair, prompts=texts, **options)
    assert found.tokens.shape == (2, 77, 80) and found.pooled.shape == (2, 24)
    parts = [alone(pair, i, texts[i], **options) for i in range(2)]
    assert found.tokens[..., :32].equal(parts[0].tokens) and found.tokens[..., 32:].equal(parts[1].tokens)
    assert found.pooled.equal(parts[1].pooled) and found.mask.equal(parts[0].mask | parts[1].mask)


@pytest.mark.parametrize("longer", [0, 1])
def test_both_have_as_many_pieces(pair: dict[str, Any], longer: int) -> None:
    texts = [["a", "b"], ["a", "b"]]
    texts[longer] = [LONG, "b"]
    found = encode_prompts_xl(**pair, prompts=texts, long_prompt=True)
    assert found.tokens.shape == (2, 154, 80) and found.mask.shape == (2, 154)
    widths = (slice(32), slice(32, None))
    assert_close(found.tokens[..., widths[longer]], alone(pair, longer, texts[longer], long_prompt=True).tokens, 0)
    other = found.tokens[..., widths[1 - longer]]
    assert_close(other[:, :77], alone(pair, 1 - longer, texts[1 - longer]).tokens, 0)
    assert_close(other[:, 77:], alone(pair, 1 - longer, ["", ""]).tokens, 0)
    assert found.mask[0, 77:].sum() == 27 and not found.mask[1, 77:].any()


def test_the_refiner_has_the_second_alone(pair: dict[str, Any]) -> None:
    found = encode_prompts_xl(pair["tokenizers"][1:], pair["encoders"][1:], [["a", "b"]])
    expected = alone(pair, 1, ["a", "b"])
    assert found.tokens.equal(expected.tokens) and found.pooled.equal(expected.pooled)


def test_what_is_cut_is_said_once(pair: dict[str, Any]) -> None:
    with pytest.warns(UserWarning) as caught:
        encode_prompts_xl(**pair, prompts=[["a " * 75 + "red"]] * 2)
    assert [str(w.message) for w in caught] == ["the prompt is longer than 75 tokens; left out: 'red'"]
    assert caught[0].filename == __file__


def test_what_is_refused(pair: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="found 2 tokenizers, 2 text encoders and prompts for 1, expected one or two"):
        encode_prompts_xl(**pair, prompts=[["a"]])
    with pytest.raises(InputError, match="expected a list of prompts for each"):
        encode_prompts_xl(**pair, prompts=["a", "b"])
    with pytest.raises(InputError, match="the encoders got 2 and 1 prompts, expected as many for each"):
        encode_prompts_xl(**pair, prompts=[["a", "b"], ["a"]])
    with pytest.raises(InputError, match="clip_skip is 2, expected 0 to 1 for this text encoder"):
        encode_prompts_xl(**pair, prompts=[["a"], ["a"]], clip_skip=2)
    with pytest.raises(InputError, match="the last text encoder has no projection, expected SDXL's second one"):
        encode_prompts_xl(pair["tokenizers"], pair["encoders"][::-1], [["a"], ["a"]])
