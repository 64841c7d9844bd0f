"""CLIP's tokenizer folders, made from OpenAI's merges file (tests/data/clip, MIT licence)."""

import gzip
import json
import shutil
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent.parent / "data"
CONFIGS = DATA / "configs"


@cache
def vocabulary_and_merges() -> tuple[dict[str, int], list[str]]:
    """The 49,408 tokens and 48,894 merges: bytes, bytes that end a word, merged pairs, the two specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(other))]
    lines = gzip.decompress((DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    joined = ["".join(merge.split()) for merge in merges]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def tokenizer_folder(path: Path, repository: str = "stable-diffusion-v1-5", part: str = "tokenizer") -> Path:
    """The official folder of that repository: vocab.json, merges.txt and its two settings files."""
    vocabulary, merges = vocabulary_and_merges()
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    shutil.copy(CONFIGS / repository / f"{part}.json", path / "tokenizer_config.json")
    shutil.copy(CONFIGS / repository / f"{part}_special_tokens_map.json", path / "special_tokens_map.json")
    return path


def small_tokenizer_folder(path: Path, length: int = 77) -> Path:
    """A vocabulary of single characters and few merges, for networks with small embeddings."""
    letters = [chr(i) for i in range(97, 123)]
    tokens = [*letters, *(f"{x}</w>" for x in letters), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), "utf-8")
    (path / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n", "utf-8")
    settings = {"model_max_length": length, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return path
