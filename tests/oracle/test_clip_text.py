"""The text encoder equals transformers' on the same random weights."""

import pytest
import torch

from enlarger.errors import InputError
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from tests.support.close import assert_close
from tests.support.random_weights import randomise

ATOL = 1e-5
START, END = 98, 99  # in a vocabulary of 100

CONFIGS = {
    "L": ClipTextConfig(32, 3, 4, 64, "quick_gelu", vocab_size=100),
    "H": ClipTextConfig(48, 2, 3, 96, "gelu", vocab_size=100),
    "bigG": ClipTextConfig(32, 2, 2, 64, "gelu", vocab_size=100, projection_dim=24),
    "named end": ClipTextConfig(32, 2, 4, 64, "quick_gelu", vocab_size=100, projection_dim=32, eos_token_id=97),
}


def transformers_model(config: ClipTextConfig) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    theirs = CLIPTextConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, hidden_act=config.activation,
        projection_dim=config.projection_dim or 7, max_position_embeddings=config.max_positions,
        eos_token_id=2 if config.eos_token_id is None else config.eos_token_id, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModel if config.projection_dim is None else CLIPTextModelWithProjection)(theirs).eval()


def ids(end: int) -> torch.Tensor:
    """Three texts of different lengths, padded with the end token, with id 0, and not at all."""
    tokens = torch.randint(1, 97, (3, 77), generator=torch.Generator().manual_seed(3))
    tokens[:, 0] = START
    tokens[0, 9:], tokens[1, 5], tokens[1, 6:], tokens[2, 76] = end, end, 0, end
    return tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name: str) -> None:
    config = CONFIGS[name]
    ours, theirs = randomise(ClipText(config)), transformers_model(config)
    stripped = {key.removeprefix("text_model."): key for key in theirs.state_dict()}
    theirs.load_state_dict({stripped[key]: value for key, value in ours.state_dict().items()}, strict=True)
    tokens = ids(END if config.eos_token_id is None else config.eos_token_id)
    with torch.inference_mode():
        found, expected = ours(tokens), theirs(tokens, output_hidden_states=True)
    assert len(found.hidden_states) == len(expected.hidden_states) == config.layers + 1
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_close(a, b, ATOL)
    assert_close(found.last_hidden_state, expected.last_hidden_state, ATOL)
    if config.projection_dim is None:
        assert found.text_embeds is None
        assert_close(found.pooler_output, expected.pooler_output, ATOL)
    else:
        assert found.text_embeds is not None
        assert_close(found.text_embeds, expected.text_embeds, ATOL)


def test_pooled_is_the_last_state_at_the_first_end_token() -> None:
    features = randomise(ClipText(CONFIGS["L"]))(ids(END))
    assert_close(features.pooler_output, features.last_hidden_state[[0, 1, 2], [9, 5, 76]], 0)


def test_later_tokens_do_not_reach_earlier_ones() -> None:
    ours, tokens = randomise(ClipText(CONFIGS["H"])), ids(END)
    changed = tokens.clone()
    changed[:, 40:] = 5
    assert_close(ours(changed).last_hidden_state[:, :40], ours(tokens).last_hidden_state[:, :40], 1e-6)


def test_shorter_texts_are_allowed_and_longer_ones_refused() -> None:
    ours, tokens = randomise(ClipText(CONFIGS["L"])), ids(END)
    assert_close(ours(tokens[:, :20]).last_hidden_state, ours(tokens).last_hidden_state[:, :20], ATOL)
    with pytest.raises(InputError, match=r"got 154 tokens and has 77 positions; truncate the prompt or encode it in"):
        ours(torch.cat((tokens, tokens), dim=1))
