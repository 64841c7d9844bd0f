"""Textual inversion: every layout of its files, what is added, and what stays as it was."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch import Tensor

from enlarger.checkpoint.adapters.textual_inversion import (
    TextualInversion,
    add_textual_inversion,
    read_textual_inversion,
)
from enlarger.errors import CheckpointError, InputError
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from enlarger.text.encode import encode_prompts
from enlarger.text.tokenize import Tokenizer
from tests.support.clip_files import small_tokenizer_folder
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

TEXT = ClipTextConfig(32, 2, 4, 64, "quick_gelu", vocab_size=56)  # as many as the small tokenizer has
VECTORS = normal(3, 32, seed=5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(small_tokenizer_folder(tmp_path_factory.mktemp("text") / "tokenizer"))


@pytest.fixture(scope="module")
def encoder() -> ClipText:
    return randomise(ClipText(TEXT))


def inversion(vectors: Tensor = VECTORS, token: str = "<toy>") -> TextualInversion:
    return read_textual_inversion({token: vectors})


def inner(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer([text])
    return tokens.ids[0, tokens.mask[0]].tolist()[1:-1]


def saved(path: Path, data: Any) -> Path:
    save_file(data, path) if path.suffix == ".safetensors" else torch.save(data, path)
    return path


@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 32)])
def test_files_of_diffusers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    vectors = VECTORS[: shape[0]] if len(shape) == 2 else VECTORS[0]
    found = read_textual_inversion(saved(tmp_path / "learned_embeds.safetensors", {"<toy>": vectors}))
    assert found.token == "<toy>" and list(found.vectors) == ["32"]
    assert found.vectors["32"].equal(vectors.reshape(-1, 32))
    assert read_textual_inversion(tmp_path).token == "<toy>"
    assert read_textual_inversion(tmp_path, "<mine>").token == "<mine>"


def test_files_of_automatic1111(tmp_path: Path) -> None:
    assert read_textual_inversion(saved(tmp_path / "style.safetensors", {"emb_params": VECTORS})).token == "style"
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(VECTORS)},
        "name": "x",
        "step": 5,
    }
    path = saved(tmp_path / "old.pt", data)
    with pytest.raises(CheckpointError, match=r"old.pt: a pickle.*expected .safetensors.*give allow_pickle=True"):
        read_textual_inversion(path)
    found = read_textual_inversion(path, allow_pickle=True)
    assert found.token == "x" and found.vectors["32"].equal(VECTORS) and not found.vectors["32"].requires_grad
    with pytest.raises(CheckpointError, match=r"old.pt: string_to_param holds no '\*'"):
        read_textual_inversion(saved(path, data | {"string_to_param": {}}), allow_pickle=True)
    assert read_textual_inversion(saved(tmp_path / "bare.bin", VECTORS), allow_pickle=True).token == "bare"


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_files_for_two_encoders(tmp_path: Path, names: tuple[str, str]) -> None:
    data = {names[0]: normal(2, 32), names[1]: normal(2, 48)}
    found = read_textual_inversion(saved(tmp_path / "two.safetensors", data), "<two>")
    assert list(found.vectors) == ["clip_l", "clip_g"]
    assert found.vectors["clip_l"].equal(data[names[0]]) and found.vectors["clip_g"].equal(data[names[1]])


def as_json(vectors: Tensor, name: str = "face") -> bytes:
    table = {"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": name, "step": 5}
    return json.dumps(table).encode()


def in_pixels(data: bytes, picture: np.ndarray) -> np.ndarray:
    """A picture with the data in the low bits of blocks at both sides, as AUTOMATIC1111 draws it."""
    height, state, randoms = len(picture), 0, []
    packed = np.frombuffer(zlib.compress(data, 9), np.uint8)
    packed = np.resize(packed, (len(packed) // (3 * height) + 1) * 3 * height).reshape(height, -1, 3)
    for _ in range(packed.size):
        state = (1664525 * state + 1013904223) % 2**32
        randoms.append(state % 255 & 15)
    mask = np.array(randoms, np.uint8).reshape(packed.shape)
    low, high = ((half ^ mask) | 0x50 for half in (packed & 15, packed >> 4))  # their high bits are a pattern
    gap = np.zeros((height, 1, 3), np.uint8)
    return np.concatenate([low, gap, picture, gap, high], axis=1)


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("border", [0, 3])
def test_embeddings_in_pixels(tmp_path: Path, suffix: str, border: int) -> None:
    picture = np.random.default_rng(0).integers(1, 255, (64, 50, 3), np.uint8)
    drawn = np.pad(in_pixels(as_json(VECTORS), picture), ((border, border), (border, border), (0, 0)))
    Image.fromarray(drawn).save(tmp_path / f"a.{suffix}", lossless=True)
    found = read_textual_inversion(tmp_path / f"a.{suffix}")
    assert found.token == "face" and found.vectors["32"].equal(VECTORS)


def test_embeddings_in_a_text_chunk(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("sd-ti", base64.b64encode(as_json(VECTORS)).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    assert read_textual_inversion(tmp_path / "a.png").vectors["32"].equal(VECTORS)
    assert read_textual_inversion(tmp_path / "a.png", "<mine>").token == "<mine>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found no embedding in this picture"),
        ("not base64!", "the embedding in this picture is damaged"),
        (base64.b64encode(b"[1]").decode(), "the embedding in this picture is no table of vectors"),
        (base64.b64encode(b'{"a": {"TORCHTENSOR": "x"}}').decode(), "the embedding in this picture is damaged"),
        (base64.b64encode(b"[%s1]" % (b"0," * 500_000)).decode(), "the embedding in this picture is damaged"),
    ],
    ids=["none", "text", "list", "numbers", "many"],
)
def test_pictures_without_an_embedding(tmp_path: Path, text: str | None, message: str) -> None:
    chunks = PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_text("sd-ti", text)
    Image.new("RGB", (40, 40), "white").save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(CheckpointError, match=rf"a\.png: .*{message}"):
        read_textual_inversion(tmp_path / "a.png")


def test_keys_of_string_to_param(tmp_path: Path) -> None:
    table = torch.nn.ParameterDict({"<a>": torch.nn.Parameter(VECTORS), "<b>": torch.nn.Parameter(VECTORS[:1])})
    path = saved(tmp_path / "old.pt", {"string_to_param": table, "string_to_token": {"<a>": torch.tensor(265)}})
    found = read_textual_inversion(path, "<b>", allow_pickle=True)
    assert found.token == "<b>" and found.vectors["32"].equal(VECTORS[:1])
    with pytest.raises(CheckpointError, match=r"holds no '\*' but <a>, <b>; pick a key with token="):
        read_textual_inversion(path, allow_pickle=True)


def test_a_file_of_several_tokens_needs_a_choice(tmp_path: Path) -> None:
    path = saved(tmp_path / "many.safetensors", {"<a>": VECTORS[0], "<b>": VECTORS[1]})
    assert read_textual_inversion(path, "<b>").vectors["32"].equal(VECTORS[1:2])
    with pytest.raises(CheckpointError, match=r"2 tensors \(<a>, <b>\), expected the vectors of one token; pick one"):
        read_textual_inversion(path, "<c>")


def test_the_vectors_are_a_copy() -> None:
    data = {"<toy>": VECTORS.clone()}
    found = read_textual_inversion(data)
    data["<toy>"].zero_()
    assert found.vectors["32"].equal(VECTORS)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_pickles_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "evil.pt", {"<toy>": VECTORS, "more": Evil()})
    with pytest.raises(CheckpointError, match=r"evil.pt: cannot be read as a textual inversion"):
        read_textual_inversion(path, allow_pickle=True)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "no vectors found; expected {token: tensor}, emb_params or string_to_param"),
        ({"step": 4}, "no vectors found"),
        ({"<a>": torch.ones(2, 3, 4)}, r"<a> has shape \(2, 3, 4\), expected \(vectors, width\) or \(width\)"),
        ({"<a>": torch.ones(0, 4)}, r"<a> has shape \(0, 4\)"),
        ({"<a>": torch.ones(2, 4).long()}, "<a> is torch.int64, expected vectors of floating-point numbers"),
        ({"emb_params": 3}, " is int, expected vectors of floating-point numbers"),
        ({"<a>": torch.tensor([[1.0, float("nan")]])}, "<a> has values that are not finite"),
        (
            {"clip_l": torch.ones(1, 4), "clip_g": torch.ones(2, 4)},
            "found 1 for clip_l, 2 for clip_g, expected as many",
        ),
    ],
)
def test_what_is_no_inversion(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_textual_inversion(data, "<a>" if "<a>" not in data else None)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.safetensors: no such file"):
        read_textual_inversion(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"no learned_embeds.safetensors; found nothing"):
        read_textual_inversion(tmp_path)
    saved(tmp_path / "learned_embeds.bin", {"<toy>": VECTORS})
    with pytest.raises(CheckpointError, match=r"no learned_embeds.safetensors; found learned_embeds.bin"):
        read_textual_inversion(tmp_path)
    assert read_textual_inversion(tmp_path, allow_pickle=True).token == "<toy>"
    (tmp_path / "bad.safetensors").write_bytes(b"12345678{")
    with pytest.raises(CheckpointError, match=r"bad.safetensors: cannot be read as a textual inversion"):
        read_textual_inversion(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="the token is empty or missing; give one with token="):
        read_textual_inversion(VECTORS)
    with pytest.raises(InputError, match="the token is empty or missing"):
        read_textual_inversion({"<toy>": VECTORS}, "")


def test_a_token_stands_for_all_its_vectors(tokenizer: Tokenizer, encoder: ClipText) -> None:
    grown, made = add_textual_inversion(tokenizer, encoder, inversion())
    assert inner(grown, "a <toy> b") == [*inner(tokenizer, "a"), 56, 57, 58, *inner(tokenizer, "b")]
    assert inner(grown, "a<TOY>b") == inner(grown, "a <toy> b") and inner(grown, "<toy>_1 <toy>_2") == [57, 58]
    table = made.embeddings.token_embedding.weight
    assert table.shape == (59, 32) and table[56:].equal(VECTORS) and made.config.vocab_size == 59
    one, single = add_textual_inversion(tokenizer, encoder, inversion(VECTORS[0]))
    assert inner(one, "<toy>") == [56] and single.embeddings.token_embedding.weight.shape == (57, 32)


def test_what_is_given_stays(tokenizer: Tokenizer, encoder: ClipText) -> None:
    texts, before = ["a <toy>", "the cat"], {name: value.clone() for name, value in encoder.state_dict().items()}
    ids, features = tokenizer(texts).ids, encode_prompts(tokenizer, encoder, texts)
    grown, made = add_textual_inversion(tokenizer, encoder, inversion())
    again = encode_prompts(tokenizer, encoder, texts)
    assert tokenizer(texts).ids.equal(ids) and again.tokens.equal(features.tokens)
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items()) and len(before) > 30
    assert encoder.config == TEXT and encoder.embeddings is not made.embeddings
    shared = {name: value.data_ptr() for name, value in encoder.state_dict().items()}
    moved = [name for name, value in made.state_dict().items() if value.data_ptr() != shared[name]]
    assert moved == ["embeddings.token_embedding.weight"] and not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert encode_prompts(grown, made, ["the cat"]).tokens.equal(encode_prompts(tokenizer, encoder, ["the cat"]).tokens)


def test_inversions_add_up(tokenizer: Tokenizer, encoder: ClipText) -> None:
    grown, made = add_textual_inversion(
        *add_textual_inversion(tokenizer, encoder, inversion()), inversion(VECTORS[:2] + 1, "mystyle")
    )
    assert inner(grown, "<toy>, mystyle")[:3] == [56, 57, 58] and inner(grown, "mystyle") == [59, 60]
    assert made.embeddings.token_embedding.weight[56:].equal(torch.cat([VECTORS, VECTORS[:2] + 1]))


def test_spare_embeddings_are_used_first(tokenizer: Tokenizer) -> None:
    encoder = randomise(ClipText(ClipTextConfig(32, 1, 4, 64, "gelu", vocab_size=64)))
    _, made = add_textual_inversion(tokenizer, encoder, inversion())
    table, old = made.embeddings.token_embedding.weight, encoder.embeddings.token_embedding.weight
    assert len(table) == 64 and table[56:59].equal(VECTORS) and table[59:].equal(old[59:])


def test_precision_is_the_encoders(tokenizer: Tokenizer) -> None:
    encoder = randomise(ClipText(TEXT)).half()
    assert (
        add_textual_inversion(tokenizer, encoder, inversion())[1].embeddings.token_embedding.weight.dtype
        == torch.float16
    )


def test_weights_and_pieces_hold_for_every_vector(tokenizer: Tokenizer, encoder: ClipText) -> None:
    grown, made = add_textual_inversion(tokenizer, encoder, inversion())
    row = grown(["a (<toy>:1.5) b"], weighted=True)
    assert row.weights[0, :6].tolist() == [1, 1, 1.5, 1.5, 1.5, 1]
    assert grown(["a " * 74 + "<toy> b"]).removed_text == ("<toy> b",)
    rows = grown.tokenize_in_chunks("a " * 74 + "<toy>")
    assert rows.ids[0, 75] == 56 and rows.ids[1, 1:3].tolist() == [57, 58]
    assert encode_prompts(grown, made, ["a " * 74 + "<toy>"], long_prompt=True).tokens.shape == (1, 154, 32)


def test_pooled_is_taken_at_the_end_token(tokenizer: Tokenizer, encoder: ClipText) -> None:
    grown, made = add_textual_inversion(tokenizer, encoder, inversion(VECTORS[0]))
    found = encode_prompts(grown, made, ["a <toy> b"])
    assert_close(found.pooled[0], found.tokens[0, 4], 0)


@pytest.mark.parametrize("again", [False, True])
def test_written_files_keep_the_tokens(tokenizer: Tokenizer, encoder: ClipText, tmp_path: Path, again: bool) -> None:
    grown, _ = add_textual_inversion(tokenizer, encoder, inversion())
    for _ in range(1 + again):
        for name, text in grown.to_files().items():
            (tmp_path / name).write_text(text, "utf-8")
        read = Tokenizer.from_folder(tmp_path)
        texts = ["a <toy> b", "<TOY>", "<toy>_1 the"]
        assert read(texts).ids.equal(grown(texts).ids) and read.multi_vector_tokens == {56: (56, 57, 58)}
        grown = read
    listed = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert listed["57"]["content"] == "<toy>_1" and listed["57"]["special"] is False


def test_the_right_vectors_for_each_encoder(tokenizer: Tokenizer, encoder: ClipText) -> None:
    found = read_textual_inversion({"clip_l": VECTORS, "clip_g": normal(3, 48)}, "<toy>")
    wide = randomise(ClipText(ClipTextConfig(48, 1, 4, 64, "gelu", vocab_size=56, projection_dim=8)))
    assert add_textual_inversion(tokenizer, encoder, found)[1].embeddings.token_embedding.weight[56:].equal(VECTORS)
    assert add_textual_inversion(tokenizer, wide, found)[1].embeddings.token_embedding.weight[56:].equal(normal(3, 48))
    alike = read_textual_inversion({"clip_l": VECTORS, "clip_g": VECTORS + 1}, "<toy>")
    made = add_textual_inversion(tokenizer, encoder, alike, encoder_key="clip_g")[1]
    assert made.embeddings.token_embedding.weight[56:].equal(VECTORS + 1)
    with pytest.raises(InputError, match="clip_l and clip_g of '<toy>' are both 32 wide; say which with encoder_key="):
        add_textual_inversion(tokenizer, encoder, alike)
    with pytest.raises(InputError, match="encoder_key is 'clip_h', expected clip_l or clip_g"):
        add_textual_inversion(tokenizer, encoder, alike, encoder_key="clip_h")
    with pytest.raises(InputError, match="'<toy>' has vectors for clip_l, none for clip_g"):
        add_textual_inversion(
            tokenizer, encoder, read_textual_inversion({"clip_l": VECTORS}, "<toy>"), encoder_key="clip_g"
        )
    assert add_textual_inversion(tokenizer, encoder, inversion(), encoder_key="clip_l")[0].multi_vector_tokens


def test_another_width_is_refused(tokenizer: Tokenizer, encoder: ClipText) -> None:
    with pytest.raises(
        InputError,
        match=r"vectors of '<toy>' are 1024 wide \(SD2\), the text encoder is 32 wide; use an inversion that",
    ):
        add_textual_inversion(tokenizer, encoder, inversion(normal(1, 1024)))


@pytest.mark.parametrize("token", ["the</w>", "a", "A", "<toy>_1", "<TOY>", "<toy>_2", "<|endoftext|>"])
def test_tokens_that_exist_are_refused(tokenizer: Tokenizer, encoder: ClipText, token: str) -> None:
    grown, made = add_textual_inversion(tokenizer, encoder, inversion())
    with pytest.raises(InputError, match=r"the tokenizer already knows .*; choose another name with token="):
        add_textual_inversion(grown, made, inversion(VECTORS[:1], token))


@pytest.mark.parametrize(("first", "second"), [("<toy>", "<toy>_1"), ("<toy>_1", "<toy>")])
def test_tokens_that_would_join_are_refused(tokenizer: Tokenizer, encoder: ClipText, first: str, second: str) -> None:
    grown, made = add_textual_inversion(tokenizer, encoder, inversion(VECTORS[:1], first))
    with pytest.raises(
        InputError, match=f"'{second}' and a token that is there read as vectors of one; choose another"
    ):
        add_textual_inversion(grown, made, inversion(VECTORS[:1], second))


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    encoder = randomise(ClipText(ClipTextConfig(32, 1, 4, 64, "gelu", vocab_size=50)))
    with pytest.raises(
        InputError, match="the tokenizer has 56 tokens and the text encoder 50 embeddings, expected both"
    ):
        add_textual_inversion(tokenizer, encoder, inversion())
