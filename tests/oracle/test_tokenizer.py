"""Token ids and masks equal transformers' CLIPTokenizer, for folders that it and we have written."""

import random
from pathlib import Path

import pytest

from enlarger.text.tokenize import Tokenizer
from tests.support.clip_files import tokenizer_folder

transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")

PIECES = "! a é İ <|endoftext|> <|STARTOFTEXT|> <|startoftext|> \0 \u0301 😀 the 日 \n 's 'S 9 ß ſ !! <| ﬁ ٣".split(" ")  # noqa: SIM905 - more readable
FOLDERS = {
    "sd1": ("stable-diffusion-v1-5", "tokenizer"),
    "sd2": ("stable-diffusion-2", "tokenizer"),
    "sdxl-2": ("stable-diffusion-xl-base-1.0", "tokenizer_2"),
}


def prompts(count: int) -> list[str]:
    """Random strings of pieces that tokenisers disagree about, and one that is too long."""
    choose = random.Random(0)
    made = ["".join(choose.choices([*PIECES, " "], k=choose.randint(1, 12))) for _ in range(count)]
    return [*made, "", "the quick brown fox, " * 20]


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_masks_equal_transformers(tmp_path: Path, name: str) -> None:
    folder = tokenizer_folder(tmp_path / "official", *FOLDERS[name])
    oracle = transformers.CLIPTokenizer.from_pretrained(folder)
    oracle.save_pretrained(tmp_path / "theirs")
    ours = Tokenizer.from_folder(folder)
    (tmp_path / "ours").mkdir()
    for file, text in ours.to_files().items():
        (tmp_path / "ours" / file).write_text(text, "utf-8")
    texts = prompts(300)
    settings = {"padding": "max_length", "truncation": True, "max_length": 77}
    expected = oracle(texts, return_tensors="pt", **settings)
    for tokenizer in (ours, *(Tokenizer.from_folder(tmp_path / saved) for saved in ("theirs", "ours"))):
        found = tokenizer(texts)
        assert found.ids.equal(expected.input_ids)
        assert found.mask.equal(expected.attention_mask.bool())
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
    assert again(texts, return_tensors="pt", **settings).input_ids.equal(expected.input_ids)
