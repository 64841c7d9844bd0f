"""SDXL's text features and textual inversions equal diffusers' on the same random encoders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from enlarger.checkpoint.adapters.textual_inversion import add_textual_inversion, read_textual_inversion
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from enlarger.text.encode import PromptEmbeds, encode_prompts, encode_prompts_xl
from enlarger.text.tokenize import Tokenizer
from tests.support.clip_files import tokenizer_folder
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")

ATOL = 1e-6
FIRST = ClipTextConfig(32, 3, 4, 64, "quick_gelu")
SECOND = ClipTextConfig(48, 4, 4, 64, "gelu", projection_dim=24)
SDXL = "stable-diffusion-xl-base-1.0"
PROMPT, PROMPT_2 = ["a photo of a cat!", "two dogs!!! in the snow"], ["blue, at night", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return [tokenizer_folder(root / part, SDXL, part) for part in ("tokenizer", "tokenizer_2")]


@pytest.fixture(scope="module")
def tokenizers(folders: list[Path]) -> list[Tokenizer]:
    return [Tokenizer.from_folder(folder) for folder in folders]


@pytest.fixture(scope="module")
def encoders() -> list[ClipText]:
    return [randomise(ClipText(FIRST), 1), randomise(ClipText(SECOND), 2)]


@pytest.fixture(scope="module")
def theirs(folders: list[Path], encoders: list[ClipText]) -> Any:
    return sdxl(folders, encoders)


def transformed(encoder: ClipText, end: int = 2) -> Any:
    """transformers' encoder of the same weights."""
    config = encoder.config
    theirs = transformers.CLIPTextConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, hidden_act=config.activation,
        projection_dim=config.projection_dim or 7, eos_token_id=end, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    kind = transformers.CLIPTextModel if config.projection_dim is None else transformers.CLIPTextModelWithProjection
    model = kind(theirs).eval().requires_grad_(False)
    names = {name.removeprefix("text_model."): name for name in model.state_dict()}
    model.load_state_dict({names[name]: value for name, value in encoder.state_dict().items()}, strict=True)
    return model


def sdxl(folders: list[Path], encoders: list[ClipText], end: int = 2) -> Any:
    """Their pipeline with nothing in it but text."""
    texts = [transformed(encoder, end) for encoder in encoders]
    read = [transformers.CLIPTokenizer.from_pretrained(folder) for folder in folders]
    return diffusers.StableDiffusionXLPipeline(None, texts[0], texts[1], read[0], read[1], None, None)


def expected(pipe: Any, **options: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        tokens, _, pooled, _ = pipe.encode_prompt(device="cpu", do_classifier_free_guidance=False, **options)
    return tokens, pooled


def assert_same(found: PromptEmbeds, reference: tuple[Tensor, Tensor]) -> None:
    assert_close(found.tokens, reference[0], ATOL)
    assert_close(found.pooled, reference[1], ATOL)


@pytest.mark.parametrize("second", [PROMPT, PROMPT_2])
@pytest.mark.parametrize("skip", [None, 0, 1, 2])
def test_base(tokenizers: Any, encoders: Any, theirs: Any, second: list[str], skip: int | None) -> None:
    found = encode_prompts_xl(tokenizers, encoders, [PROMPT, second], clip_skip=0 if skip is None else skip)
    assert found.tokens.shape == (2, 77, 80)
    assert_same(found, expected(theirs, prompt=PROMPT, prompt_2=second, clip_skip=skip))


def test_negative_prompts(tokenizers: Any, encoders: Any, theirs: Any) -> None:
    texts = [[*PROMPT, "ugly", ""], [*PROMPT, "grey!", ""]]
    found = encode_prompts_xl(tokenizers, encoders, texts)
    options = {"negative_prompt": ["ugly", ""], "negative_prompt_2": ["grey!", ""]}
    with torch.no_grad():
        tokens, negative, pooled, negative_pooled = theirs.encode_prompt(PROMPT, device="cpu", **options)
    assert_same(found, (torch.cat([tokens, negative]), torch.cat([pooled, negative_pooled])))


def test_long_prompts_are_cut_alike(tokenizers: Any, encoders: Any, theirs: Any) -> None:
    texts = ["the quick brown fox! " * 30, "a"]
    with pytest.warns(UserWarning, match="longer than 75 tokens"):
        found = encode_prompts_xl(tokenizers, encoders, [texts, texts])
    assert_same(found, expected(theirs, prompt=texts))


@pytest.mark.parametrize("skip", [None, 1])
def test_refiner(folders: Any, tokenizers: Any, encoders: Any, theirs: Any, skip: int | None) -> None:
    parts = {"text_encoder_2": theirs.text_encoder_2, "tokenizer_2": theirs.tokenizer_2}
    nothing = dict.fromkeys(["vae", "text_encoder", "tokenizer", "unet", "scheduler"])
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**nothing, **parts, requires_aesthetics_score=True)
    found = encode_prompts_xl(tokenizers[1:], encoders[1:], [PROMPT], clip_skip=skip or 0)
    assert_same(found, expected(refiner, prompt=PROMPT, clip_skip=skip))


def test_the_second_tokenizer_pads_with_an_exclamation_mark(tokenizers: Any, theirs: Any) -> None:
    for ours, other in zip(tokenizers, (theirs.tokenizer, theirs.tokenizer_2), strict=True):
        ids = other(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert ours(PROMPT).ids.equal(ids)
    assert [tokenizer.pad_token_id for tokenizer in tokenizers] == [49407, 0]


@pytest.mark.parametrize("count", [1, 3])
def test_inversion(folders: Any, tokenizers: Any, encoders: Any, tmp_path: Path, count: int) -> None:
    from safetensors.torch import save_file

    pipe = diffusers.StableDiffusionPipeline(
        None, transformed(encoders[0]), transformers.CLIPTokenizer.from_pretrained(folders[0]), None, None, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    save_file({"<toy>": normal(count, 32, seed=7)}, tmp_path / "learned_embeds.safetensors")
    pipe.load_textual_inversion(str(tmp_path))
    tokenizer, encoder = add_textual_inversion(tokenizers[0], encoders[0], read_textual_inversion(tmp_path))
    texts = ["a <toy> on a table", "two<toy>s, <toy>", "a cat", "<toy>" + " a" * 60]
    with torch.no_grad():
        reference = pipe.encode_prompt(texts, "cpu", 1, False)[0]
    assert_close(encode_prompts(tokenizer, encoder, texts).tokens, reference, ATOL)


@pytest.mark.parametrize("count", [1, 2])
def test_inversion_of_both_encoders(folders: Any, tokenizers: Any, encoders: Any, count: int) -> None:
    """Pooled features are theirs where their config names the end token; else theirs are at the new token."""
    data = {"clip_l": normal(count, 32, seed=7), "clip_g": normal(count, 48, seed=8)}
    pipe = sdxl(folders, encoders, end=49407)
    for name, i in (("clip_l", ""), ("clip_g", "_2")):
        parts = {"text_encoder": getattr(pipe, f"text_encoder{i}"), "tokenizer": getattr(pipe, f"tokenizer{i}")}
        pipe.load_textual_inversion({"<toy>": data[name]}, **parts)
    found = read_textual_inversion(data, "<toy>")
    pairs = [add_textual_inversion(*both, found) for both in zip(tokenizers, encoders, strict=True)]
    texts = [["a <toy>! on a table", "a cat"], ["<toy> in the style of <toy>", ""]]
    ours = encode_prompts_xl(*zip(*pairs, strict=True), texts)
    assert_same(ours, expected(pipe, prompt=texts[0], prompt_2=texts[1]))


def test_their_tokenizer_reads_ours(tokenizers: Any, encoders: Any, tmp_path: Path) -> None:
    tokenizer, _ = add_textual_inversion(tokenizers[1], encoders[0], read_textual_inversion({"<Toy>": normal(2, 32)}))
    for name, text in tokenizer.to_files().items():
        (tmp_path / name).write_text(text, "utf-8")
    other = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a <Toy>_1!", "a <toy>_1 b", "no toy"]
    ids = other(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert tokenizer(texts).ids.equal(ids) and Tokenizer.from_folder(tmp_path)(texts).ids.equal(ids)
    assert Tokenizer.from_folder(tmp_path).multi_vector_tokens == {49408: (49408, 49409)}
