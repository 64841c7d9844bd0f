"""CLIP's byte-pair tokeniser: prompts to rows of 77 token ids."""

import html
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count, takewhile
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from torch import Tensor

from enlarger.errors import CheckpointError, InputError
from enlarger.jsonfile import read_json
from enlarger.text.weights import Weighted, parse

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # positions of every CLIP text encoder, start and end token included
# Radford et al. 2021: specials, English endings, runs of letters, single digits, runs of anything else.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class Tokens:
    """Rows for a text encoder, what is real in them, and what had to be left out."""

    ids: Tensor  # (B, 77) int64
    mask: Tensor  # (B, 77) bool, True from the start token to the first end token
    cut: tuple[str, ...]  # per text: the part that did not fit, "" where all of it did
    weights: Tensor  # (B, 77) float32, 1 where the prompt gives none


@dataclass(frozen=True)
class _Reading:
    """A text as it was read, its ids without start and end, where each begins in the text, and its weight."""

    text: str
    ids: list[int]
    starts: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Tokenizer:
    """Calling it turns texts into `Tokens`. Lone surrogates in a text become U+FFFD; NUL is a character like others.

    `original` reads prompts as OpenAI's and open_clip's code does: HTML entities are unescaped, and where "!" is
    the padding a typed "!" keeps its own id. Otherwise ids equal transformers', where such a "!" is the padding.
    """

    backend: tokenizers.Tokenizer
    start: int
    end: int
    pad: int
    length: int = LENGTH
    original: bool = False
    # Ids that stand for several, as `_groups` finds them in the backend.
    groups: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]], compare=False)

    @classmethod
    def from_folder(cls, path: str | Path, *, original: bool = False) -> "Tokenizer":
        """Read `tokenizer.json`, or `vocab.json` and `merges.txt`. Raises `CheckpointError`, naming the file."""
        return _read_folder(Path(path), original)

    def __call__(self, texts: Sequence[str], weighted: bool = False) -> Tokens:
        """One row per text: start, up to 75 tokens, end, padding. Longer texts are cut.

        `weighted` reads the brackets of `weights.parse`. A token has the weight of the character it begins with, so
        that the ids are those of the text without its brackets.
        """
        read = [self._read(text, weighted) for text in ([texts] if isinstance(texts, str) else texts)]
        room = self.length - 2
        made = self._rows([one.ids[:room] for one in read], [one.weights[:room] for one in read])
        cut = (one.text[one.starts[room] :].strip() if len(one.ids) > room else "" for one in read)
        return replace(made, cut=tuple(cut))

    def chunks(self, text: str, weighted: bool = False) -> Tokens:
        """As many rows as the whole text needs, at least one; nothing is cut."""
        read, room = self._read(text, weighted), self.length - 2
        parts = [slice(i, i + room) for i in range(0, max(len(read.ids), 1), room)]
        return self._rows([read.ids[part] for part in parts], [read.weights[part] for part in parts])

    def with_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """A new tokenizer that matches these as a whole, in any case; they get the next free ids, in order."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_tokens([AddedToken(name, normalized=True) for name in names])
        return replace(self, backend=backend, groups=_groups(backend))

    def files(self) -> dict[str, str]:
        """The tokenizer folder as transformers reads it: the contents of each file under its name."""
        model: dict[str, Any] = json.loads(self.backend.to_str())["model"]
        merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
        known = {
            i: _flags(token) | {"special": token.special}
            for i, token in self.backend.get_added_tokens_decoder().items()
        }
        pad = self.backend.id_to_token(self.pad)
        known.setdefault(self.pad, _flags(AddedToken(pad, special=True)) | {"special": True})
        roles = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.length, "do_lower_case": True, **roles}
        decoder = {str(i): known[i] for i in sorted(known)}
        return {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
            "merges.txt": "\n".join(("#version: 0.2", *merges)) + "\n",
            "special_tokens_map.json": json.dumps(roles, indent=2) + "\n",
            "tokenizer_config.json": json.dumps(config | {"added_tokens_decoder": decoder}, indent=2) + "\n",
        }

    def _read(self, text: str, weighted: bool) -> _Reading:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be checked
            raise InputError(f"a prompt is a {type(text).__name__}, expected a string.")
        parts = [replace(part, text=self._clean(part.text)) for part in _parts(text, weighted)]
        whole, ends = "".join(part.text for part in parts), list(accumulate(len(part.text) for part in parts))
        found = self.backend.encode(whole, add_special_tokens=False)
        ids, starts = list[int](), list[int]()
        for i, (start, _) in zip(found.ids, found.offsets, strict=True):
            group = self.groups.get(i, (i,))
            ids += group
            starts += [start] * len(group)
        return _Reading(whole, ids, starts, [parts[bisect_right(ends, start)].weight for start in starts])

    def _clean(self, text: str) -> str:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return html.unescape(html.unescape(text)) if self.original else text

    def _rows(self, inner: Sequence[Sequence[int]], inner_weights: Sequence[Sequence[float]]) -> Tokens:
        ids = torch.full((len(inner), self.length), self.pad)
        mask, weights = torch.zeros(ids.shape, dtype=torch.bool), torch.ones(ids.shape)
        for row, (found, own) in enumerate(zip(inner, inner_weights, strict=True)):
            filled = (self.start, *found, self.end)
            ids[row, : len(filled)] = torch.tensor(filled)
            mask[row, : len(filled)] = True
            weights[row, 1 : len(own) + 1] = torch.tensor(own)
        return Tokens(ids, mask, ("",) * len(inner), weights)


def _parts(text: str, weighted: bool) -> Sequence[Weighted]:
    return parse(text) if weighted else (Weighted(text, 1.0),)


def _groups(backend: tokenizers.Tokenizer) -> dict[int, tuple[int, ...]]:
    """Ids that stand for several: an added token `name` for itself, `name_1`, `name_2` and so on, as in diffusers."""
    added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    found: dict[int, tuple[int, ...]] = {}
    for name, first in added.items():
        more = takewhile(added.__contains__, (f"{name}_{k}" for k in count(1)))
        ids = (first, *(added[part] for part in more))
        if len(ids) > 1:
            found[first] = ids
    return found


def _read_folder(folder: Path, original: bool) -> Tokenizer:
    """Vocabulary and merges from whichever files are there, special tokens from the files that decide them."""
    whole = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else {}
    try:
        config, roles = _read_roles(folder, whole)
        backend = _backend(*_read_pairs(folder, whole))
        start, end = (_token_id(backend, _content(roles[role]), folder) for role in ("bos_token", "eos_token"))
        listed = _listed(folder, whole, config)
        for token in _added_tokens(listed, roles, original):
            backend.add_tokens([token])
        _check_ids(backend, listed, folder)
        length = int(config.get("model_max_length", LENGTH))
    except CheckpointError:
        raise
    except Exception as error:  # the `tokenizers` library raises plain Exceptions
        raise CheckpointError(f"{folder}: not a CLIP tokenizer ({error}); fetch the folder again.") from error
    pad = _token_id(backend, _content(roles["pad_token"]), folder)
    length = length if 2 < length <= LENGTH else LENGTH
    return Tokenizer(backend, start, end, pad, length, original, _groups(backend))


def _read_pairs(folder: Path, whole: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges; both spellings of merges, "a b" and ["a", "b"], are in use."""
    if whole:
        vocabulary, lines = whole["model"]["vocab"], whole["model"]["merges"]
        pairs = [line.split(" ") if isinstance(line, str) else line for line in lines]
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        pairs = [line.split() for line in lines[lines[0].startswith("#version") :] if line.strip()]
    else:
        raise CheckpointError(f"{folder}: no tokenizer.json, nor vocab.json with merges.txt; expected one of these.")
    return vocabulary, [(first, second) for first, second in pairs]


def _backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's pipeline around a byte-pair model: NFC, single spaces, lower case, words, bytes."""
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])  # type: ignore[assignment] - a property with no stub for its setter
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])  # type: ignore[assignment] - as above
    return backend


def _read_roles(folder: Path, whole: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer_config.json`, and which token starts, ends and pads.

    `special_tokens_map.json` wins (the SD2 files disagree, and their weights were trained with the map's padding)
    unless the config lists its tokens itself, as newer files do. A lone tokenizer.json shows its padding by
    declaring a token of the vocabulary special that neither starts nor ends.
    """
    files = {name: folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")}
    config, special = (read_json(path) if path.is_file() else {} for path in files.values())
    roles: dict[str, Any] = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    odd = [t for t in whole.get("added_tokens") or () if t.get("special") and t.get("content") not in (START, END)]
    if whole.get("padding"):
        roles["pad_token"] = whole["padding"]["pad_token"]
    elif len(odd) == 1 and odd[0]["content"] in whole["model"]["vocab"]:
        roles["pad_token"] = odd[0]["content"]
    for source in (config, {} if "added_tokens_decoder" in config else special):
        roles |= {role: source[role] for role in ROLES if source.get(role) is not None}
    return config, roles


def _listed(folder: Path, whole: Mapping[str, Any], config: Mapping[str, Any]) -> dict[int, Any]:
    """The tokens, by id, that the files list beside the vocabulary; the newest of the three places wins."""
    listed: dict[int, Any] = {}
    if (folder / "added_tokens.json").is_file():
        listed = {int(i): name for name, i in read_json(folder / "added_tokens.json").items()}
    listed |= {int(token["id"]): token for token in whole.get("added_tokens") or ()}
    if "added_tokens_decoder" in config:
        listed = {int(i): token for i, token in config["added_tokens_decoder"].items()}
    return dict(sorted(listed.items()))


def _added_tokens(listed: Mapping[int, Any], roles: Mapping[str, Any], original: bool) -> Iterator[AddedToken]:
    """Tokens matched as a whole before splitting into words: the listed ones by id, then those with a role."""
    names = {_content(role) for role in roles.values()}
    typed = {_content(roles["pad_token"])} - {START, END} if original else set[str]()
    seen = set(typed)
    for token in (*listed.values(), *(roles[role] for role in ROLES)):
        name = _content(token)
        if name not in seen:
            yield _added(token, special=name in names)
        seen.add(name)


def _check_ids(backend: tokenizers.Tokenizer, listed: Mapping[int, Any], folder: Path) -> None:
    for i, token in listed.items():
        found = backend.token_to_id(_content(token))
        if found != i:
            raise CheckpointError(f"{folder}: added token {_content(token)!r} gets id {found}, the files say {i}.")


def _content(token: Any) -> str:
    """A token as it is typed; files give either that or an object with flags."""
    return str(cast("dict[str, Any]", token)["content"] if isinstance(token, dict) else token)


def _added(token: Any, special: bool) -> AddedToken:
    if not isinstance(token, dict):
        return AddedToken(str(token), special=special, normalized=not special)
    given = cast("dict[str, Any]", token)
    flags = {flag: bool(given.get(flag)) for flag in FLAGS}
    return AddedToken(_content(given), special=special or bool(given.get("special")), **flags)


def _flags(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content} | {flag: getattr(token, flag) for flag in FLAGS}


def _token_id(backend: tokenizers.Tokenizer, name: str, folder: Path) -> int:
    found = backend.token_to_id(name)
    if found is None:
        raise CheckpointError(f"{folder}: the vocabulary has no token {name!r}; expected CLIP's vocabulary.")
    return found
