"""Prompts to features: which state, pooling, masks, long prompts and what is said about cut ones."""

import warnings
from pathlib import Path

import pytest
import torch

from enlarger.errors import InputError
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from enlarger.text.encode import encode_prompts
from enlarger.text.tokenize import Tokenizer
from tests.support.clip_files import small_tokenizer_folder
from tests.support.close import assert_close
from tests.support.random_weights import randomise

TEXT = ClipTextConfig(32, 3, 4, 64, "quick_gelu", vocab_size=64)
LONG = "a b c d e " * 20  # 100 tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(small_tokenizer_folder(tmp_path_factory.mktemp("text") / "tokenizer"))


@pytest.fixture(scope="module")
def encoder() -> ClipText:
    return randomise(ClipText(TEXT))


def test_layers_are_the_encoders_states(tokenizer: Tokenizer, encoder: ClipText) -> None:
    texts = ["a cat", ""]
    features = encoder(tokenizer(texts).ids)
    found = {
        layer: encode_prompts(tokenizer, encoder, texts, layer=layer) for layer in ("last_norm", "last", "penultimate")
    }
    assert_close(found["last_norm"].tokens, features.last_hidden_state, 0)
    assert_close(found["last"].tokens, features.hidden_states[-1], 0)
    assert_close(found["penultimate"].tokens, features.hidden_states[-2], 0)
    for encoded in found.values():
        assert_close(encoded.pooled, features.pooler_output, 0)
        assert encoded.mask.equal(tokenizer(texts).mask) and encoded.mask.sum(1).tolist() == [6, 2]


def test_clip_skip_counts_back(tokenizer: Tokenizer, encoder: ClipText) -> None:
    states = encoder(tokenizer(["a"]).ids).hidden_states
    assert_close(encode_prompts(tokenizer, encoder, ["a"], clip_skip=1).tokens, encoder.final_layer_norm(states[-2]), 0)
    assert_close(encode_prompts(tokenizer, encoder, ["a"], layer="penultimate", clip_skip=1).tokens, states[-3], 0)
    assert_close(encode_prompts(tokenizer, encoder, ["a"], layer="last", clip_skip=3).tokens, states[0], 0)
    with pytest.raises(InputError, match="clip_skip is 3, expected 0 to 2 for this text encoder"):
        encode_prompts(tokenizer, encoder, ["a"], layer="penultimate", clip_skip=3)
    with pytest.raises(InputError, match="layer is 'first', expected one of last_norm, last, penultimate"):
        encode_prompts(tokenizer, encoder, ["a"], layer="first")  # type: ignore[arg-type] - on purpose


def test_pooled_is_projected_where_there_is_a_projection(tokenizer: Tokenizer) -> None:
    encoder = randomise(ClipText(ClipTextConfig(32, 2, 4, 64, "gelu", vocab_size=64, projection_dim=16)))
    assert encode_prompts(tokenizer, encoder, ["a"]).pooled.shape == (1, 16)


def test_cutting_warns_and_names_what_was_cut(tokenizer: Tokenizer, encoder: ClipText) -> None:
    with pytest.warns(UserWarning) as caught:
        cut = encode_prompts(tokenizer, encoder, ["a", "a " * 75 + "red dog"])
    assert [str(w.message) for w in caught] == ["the prompt is longer than 75 tokens; left out: 'red dog'"]
    assert caught[0].filename == __file__
    assert cut.tokens.shape == (2, 77, 32)


def test_long_prompts_are_pieces_side_by_side(tokenizer: Tokenizer, encoder: ClipText) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = encode_prompts(tokenizer, encoder, [LONG, "a"], long_prompt=True)
    assert found.tokens.shape == (2, 154, 32) and found.mask.shape == (2, 154)
    rows = tokenizer.tokenize_in_chunks(LONG)
    pieces = encoder(rows.ids)
    assert_close(found.tokens[0], pieces.last_hidden_state.reshape(154, 32), 1e-6)
    assert_close(found.pooled[0], pieces.pooler_output[0], 1e-6)
    assert found.mask[0].equal(rows.mask.reshape(-1))
    assert_close(found.tokens[1, :77], encode_prompts(tokenizer, encoder, ["a"]).tokens[0], 1e-6)
    assert_close(found.tokens[1, 77:], encode_prompts(tokenizer, encoder, [""]).tokens[0], 1e-6)
    assert found.mask[1].sum() == 3 and not found.mask[1, 77:].any()


def test_short_prompts_are_the_same_either_way(tokenizer: Tokenizer, encoder: ClipText) -> None:
    one, other = (encode_prompts(tokenizer, encoder, ["a", "b c"], long_prompt=long) for long in (False, True))
    assert_close(one.tokens, other.tokens, 0)
    assert one.mask.equal(other.mask)


def test_features_can_be_used_in_training(tokenizer: Tokenizer, encoder: ClipText) -> None:
    tokens = encode_prompts(tokenizer, encoder, ["a"]).tokens
    assert not tokens.requires_grad and not torch.is_inference(tokens)


def test_a_prompt_alone_equals_the_prompt_in_a_batch(tokenizer: Tokenizer, encoder: ClipText) -> None:
    texts = ["the cat", "a", LONG[:40]]
    batch = encode_prompts(tokenizer, encoder, texts).tokens
    for text, row in zip(texts, batch, strict=True):
        assert_close(encode_prompts(tokenizer, encoder, [text]).tokens[0], row, 1e-5)


def test_the_small_folder_is_read(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(small_tokenizer_folder(tmp_path / "t", length=10))
    assert tokenizer(["the cat and the dog"]).ids.shape == (1, 10)
