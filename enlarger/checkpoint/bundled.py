"""What ships with the package for files that hold weights alone: each family's configs, and CLIP's vocabulary."""

import gzip
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from enlarger.jsonfile import Json, read_json
from enlarger.text.tokenize import END, START, Tokenizer

CONFIGS = Path(__file__).parents[1] / "configs"
MERGES = CONFIGS / "clip" / "merges.txt.gz"  # those that CLIP uses of Radford et al.'s file, MIT licence


def family_configs(family: str) -> dict[str, Json]:
    """The official JSON files of a family: `model_index`, and `unet`, `vae`, `scheduler` and so on for its parts."""
    return {path.stem: read_json(path) for path in sorted((CONFIGS / family).glob("*.json"))}


@cache
def clip_tokenizer(pad: Literal["<|endoftext|>", "!"]) -> Tokenizer:
    """CLIP's tokenizer. SD1's and SDXL's first pads with the end token, SD2's, x4's and SDXL's second with "!"."""
    merges = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    roles = {"bos_token": START, "eos_token": END, "unk_token": END}
    special: Json = {role: _normalised(token) for role, token in roles.items()} | {"pad_token": pad}
    with TemporaryDirectory() as place:  # as the official folders have it, so that one reader serves both
        folder = Path(place)
        (folder / "vocab.json").write_text(json.dumps(_vocabulary(merges)), "utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(special), "utf-8")
        return Tokenizer.from_folder(folder)


def _normalised(token: str) -> Json:
    return {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def _vocabulary(merges: list[str]) -> dict[str, int]:
    """The ids in the order of the original code: bytes, bytes that end a word, merged pairs, the two specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pairs = (merge.replace(" ", "") for merge in merges)
    tokens = (*letters, *(f"{letter}</w>" for letter in letters), *pairs, START, END)
    return {token: i for i, token in enumerate(tokens)}
