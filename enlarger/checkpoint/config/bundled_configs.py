"""What ships with the package for files that hold weights alone: each family's configs, and CLIP's vocabulary."""

import gzip
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from enlarger.strict_json import Json, read_json
from enlarger.text.tokenize import BOS_TOKEN, EOS_TOKEN, Tokenizer

CONFIGS_FOLDER = Path(__file__).parents[2] / "configs"
MERGES_FILE = CONFIGS_FOLDER / "clip" / "merges.txt.gz"  # those that CLIP uses of Radford et al.'s file, MIT licence


def family_configs(family: str) -> dict[str, Json]:
    """The official JSON files of a family: `model_index`, and `unet`, `vae` and so on for its components."""
    return {path.stem: read_json(path) for path in sorted((CONFIGS_FOLDER / family).glob("*.json"))}


@cache
def clip_tokenizer(pad_token: Literal["<|endoftext|>", "!"]) -> Tokenizer:
    """CLIP's tokenizer. SD1's and SDXL's first pads with the end token, SD2's, x4's and SDXL's second with "!"."""
    merges = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    special_tokens = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "unk_token": EOS_TOKEN}
    special_tokens_map: Json = {role: _normalized_token(token) for role, token in special_tokens.items()} | {
        "pad_token": pad_token
    }
    with TemporaryDirectory() as temporary:  # as the official folders have it, so that one reader serves both
        folder = Path(temporary)
        (folder / "vocab.json").write_text(json.dumps(_clip_vocab(merges)), "utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens_map), "utf-8")
        return Tokenizer.from_folder(folder)


def _normalized_token(token: str) -> Json:
    return {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def _clip_vocab(merges: list[str]) -> dict[str, int]:
    """The ids in the order of the original code: bytes, bytes that end a word, merged pairs, the two specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pairs = (merge.replace(" ", "") for merge in merges)
    tokens = (*letters, *(f"{letter}</w>" for letter in letters), *pairs, BOS_TOKEN, EOS_TOKEN)
    return {token: i for i, token in enumerate(tokens)}
