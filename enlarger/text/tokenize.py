"""CLIP's byte-pair tokeniser: prompts to rows of 77 token ids."""

import html
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count, takewhile
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from torch import Tensor

from enlarger.errors import CheckpointError, InputError
from enlarger.strict_json import Json, is_object, read_json
from enlarger.text.weights import WeightedText, parse_prompt_attention

BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77  # positions of every CLIP text encoder, start and end token included
# Radford et al. 2021: specials, English endings, runs of letters, single digits, runs of anything else.
WORD_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")
ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class TokenizedPrompts:
    """Rows for a text encoder, what is real in them, and what had to be left out."""

    ids: Tensor  # (B, 77) int64
    mask: Tensor  # (B, 77) bool, True from the start token to the first end token
    removed_text: tuple[str, ...]  # per text: the part that did not fit, "" where all of it did
    weights: Tensor  # (B, 77) float32, 1 where the prompt gives none


@dataclass(frozen=True)
class _TokenizedText:
    """A text as it was read, its ids without start and end, where each begins in the text, and its weight."""

    text: str
    ids: list[int]
    offsets: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Tokenizer:
    """Calling it turns texts into `TokenizedPrompts`. Lone surrogates become U+FFFD; NUL is a character like others.

    `openai_compatible` reads prompts as OpenAI's and open_clip's code does: HTML entities are unescaped, and where
    "!" is the padding a typed "!" keeps its own id. Otherwise ids equal transformers', where such a "!" is the padding.
    """

    backend: tokenizers.Tokenizer
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    model_max_length: int = MAX_LENGTH
    openai_compatible: bool = False
    # Ids that stand for several, as `_find_multi_vector_tokens` finds them in the backend.
    multi_vector_tokens: Mapping[int, tuple[int, ...]] = field(
        default_factory=dict[int, tuple[int, ...]], compare=False
    )

    @classmethod
    def from_folder(cls, path: str | Path, *, openai_compatible: bool = False) -> "Tokenizer":
        """Read `tokenizer.json`, or `vocab.json` and `merges.txt`. Raises `CheckpointError`, naming the file."""
        return _load_tokenizer(Path(path), openai_compatible)

    def __call__(self, prompts: Sequence[str], weighted: bool = False) -> TokenizedPrompts:
        """One row per text: start, up to 75 tokens, end, padding. Longer texts are cut.

        `weighted` reads the brackets of `parse_prompt_attention`. A token has the weight of its first character,
        so that the ids are those of the text without its brackets.
        """
        tokenized = [self._tokenize(text, weighted) for text in ([prompts] if isinstance(prompts, str) else prompts)]
        max_tokens = self.model_max_length - 2
        batch = self._build_batch(
            [one.ids[:max_tokens] for one in tokenized], [one.weights[:max_tokens] for one in tokenized]
        )
        removed_text = (
            one.text[one.offsets[max_tokens] :].strip() if len(one.ids) > max_tokens else "" for one in tokenized
        )
        return replace(batch, removed_text=tuple(removed_text))

    def ids_of(self, text: str) -> list[int]:
        """The ids of the whole text, without start and end."""
        return self._tokenize(text, weighted=False).ids

    def tokenize_in_chunks(self, text: str, weighted: bool = False) -> TokenizedPrompts:
        """As many rows as the whole text needs, at least one; nothing is cut."""
        tokenized, max_tokens = self._tokenize(text, weighted), self.model_max_length - 2
        parts = [slice(i, i + max_tokens) for i in range(0, max(len(tokenized.ids), 1), max_tokens)]
        return self._build_batch([tokenized.ids[part] for part in parts], [tokenized.weights[part] for part in parts])

    def with_added_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """A new tokenizer that matches these as a whole, in any case; they get the next free ids, in order."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_tokens([AddedToken(name, normalized=True) for name in tokens])
        return replace(self, backend=backend, multi_vector_tokens=_find_multi_vector_tokens(backend))

    def to_files(self) -> dict[str, str]:
        """The tokenizer folder as transformers reads it: the contents of each file under its name."""
        model: Json = json.loads(self.backend.to_str())["model"]
        merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
        added_tokens = {
            i: _added_token_json(token) | {"special": token.special}
            for i, token in self.backend.get_added_tokens_decoder().items()
        }
        pad = self.backend.id_to_token(self.pad_token_id)
        added_tokens.setdefault(self.pad_token_id, _added_token_json(AddedToken(pad, special=True)) | {"special": True})
        special_tokens = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "unk_token": EOS_TOKEN, "pad_token": pad}
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.model_max_length,
            "do_lower_case": True,
            **special_tokens,
        }
        decoder = {str(i): added_tokens[i] for i in sorted(added_tokens)}
        return {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
            "merges.txt": "\n".join(("#version: 0.2", *merges)) + "\n",
            "special_tokens_map.json": json.dumps(special_tokens, indent=2) + "\n",
            "tokenizer_config.json": json.dumps(config | {"added_tokens_decoder": decoder}, indent=2) + "\n",
        }

    def _tokenize(self, text: str, weighted: bool) -> _TokenizedText:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be checked
            raise InputError(f"a prompt is a {type(text).__name__}, expected a string.")
        parts = [replace(part, text=self._clean(part.text)) for part in _weighted_parts(text, weighted)]
        clean_text, ends = "".join(part.text for part in parts), list(accumulate(len(part.text) for part in parts))
        encoding = self.backend.encode(clean_text, add_special_tokens=False)
        ids, offsets = list[int](), list[int]()
        for i, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            group = self.multi_vector_tokens.get(i, (i,))
            ids += group
            offsets += [start] * len(group)
        return _TokenizedText(clean_text, ids, offsets, [parts[bisect_right(ends, start)].weight for start in offsets])

    def _clean(self, text: str) -> str:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return html.unescape(html.unescape(text)) if self.openai_compatible else text

    def _build_batch(
        self, token_ids: Sequence[Sequence[int]], token_weights: Sequence[Sequence[float]]
    ) -> TokenizedPrompts:
        ids = torch.full((len(token_ids), self.model_max_length), self.pad_token_id)
        mask, weights = torch.zeros(ids.shape, dtype=torch.bool), torch.ones(ids.shape)
        for row, (own_ids, own_weights) in enumerate(zip(token_ids, token_weights, strict=True)):
            filled = (self.bos_token_id, *own_ids, self.eos_token_id)
            ids[row, : len(filled)] = torch.tensor(filled)
            mask[row, : len(filled)] = True
            weights[row, 1 : len(own_weights) + 1] = torch.tensor(own_weights)
        return TokenizedPrompts(ids, mask, ("",) * len(token_ids), weights)


def _weighted_parts(text: str, weighted: bool) -> Sequence[WeightedText]:
    return parse_prompt_attention(text) if weighted else (WeightedText(text, 1.0),)


def _find_multi_vector_tokens(backend: tokenizers.Tokenizer) -> dict[int, tuple[int, ...]]:
    """Ids that stand for several: an added token `name` for itself, `name_1`, `name_2` and so on, as in diffusers."""
    added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    groups: dict[int, tuple[int, ...]] = {}
    for name, first in added.items():
        more = takewhile(added.__contains__, (f"{name}_{k}" for k in count(1)))
        ids = (first, *(added[part] for part in more))
        if len(ids) > 1:
            groups[first] = ids
    return groups


def _load_tokenizer(folder: Path, openai_compatible: bool) -> Tokenizer:
    """Vocabulary and merges from whichever files are there, special tokens from the files that decide them."""
    tokenizer_json = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else {}
    try:
        config, special_tokens = _read_special_tokens(folder, tokenizer_json)
        backend = _build_backend(*_read_vocab_and_merges(folder, tokenizer_json))
        bos_token_id, eos_token_id = (
            _token_id(backend, _token_content(special_tokens[role]), folder) for role in ("bos_token", "eos_token")
        )
        added_tokens = _read_added_tokens(folder, tokenizer_json, config)
        for token in _tokens_to_add(added_tokens, special_tokens, openai_compatible):
            backend.add_tokens([token])
        _check_added_token_ids(backend, added_tokens, folder)
        max_length = int(config.get("model_max_length", MAX_LENGTH))
    except CheckpointError:
        raise
    except Exception as error:  # the `tokenizers` library raises plain Exceptions
        raise CheckpointError(f"{folder}: not a CLIP tokenizer ({error}); fetch the folder again.") from error
    pad_token_id = _token_id(backend, _token_content(special_tokens["pad_token"]), folder)
    max_length = max_length if 2 < max_length <= MAX_LENGTH else MAX_LENGTH
    return Tokenizer(
        backend,
        bos_token_id,
        eos_token_id,
        pad_token_id,
        max_length,
        openai_compatible,
        _find_multi_vector_tokens(backend),
    )


def _read_vocab_and_merges(folder: Path, tokenizer_json: Json) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges; both spellings of merges, "a b" and ["a", "b"], are in use."""
    if tokenizer_json:
        vocab, lines = tokenizer_json["model"]["vocab"], tokenizer_json["model"]["merges"]
        pairs = [line.split(" ") if isinstance(line, str) else line for line in lines]
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        pairs = [line.split() for line in lines[lines[0].startswith("#version") :] if line.strip()]
    else:
        raise CheckpointError(f"{folder}: no tokenizer.json, nor vocab.json with merges.txt; expected one of these.")
    return vocab, [(first, second) for first, second in pairs]


def _build_backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's pipeline around a byte-pair model: NFC, single spaces, lower case, words, bytes."""
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=EOS_TOKEN, end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])  # type: ignore[assignment] - a property with no stub for its setter
    words = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])  # type: ignore[assignment] - as above
    return backend


def _read_special_tokens(folder: Path, tokenizer_json: Json) -> tuple[Json, Json]:
    """`tokenizer_config.json`, and which token starts, ends and pads.

    `special_tokens_map.json` wins (the SD2 files disagree, and their weights were trained with the map's padding)
    unless the config lists its tokens itself, as newer files do. A lone tokenizer.json shows its padding by
    declaring a token of the vocabulary special that neither starts nor ends.
    """
    files = {name: folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")}
    config, special_tokens_map = (read_json(path) if path.is_file() else {} for path in files.values())
    special_tokens: Json = {
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "unk_token": EOS_TOKEN,
        "pad_token": EOS_TOKEN,
    }
    other_special = [
        t
        for t in tokenizer_json.get("added_tokens") or ()
        if t.get("special") and t.get("content") not in (BOS_TOKEN, EOS_TOKEN)
    ]
    if tokenizer_json.get("padding"):
        special_tokens["pad_token"] = tokenizer_json["padding"]["pad_token"]
    elif len(other_special) == 1 and other_special[0]["content"] in tokenizer_json["model"]["vocab"]:
        special_tokens["pad_token"] = other_special[0]["content"]
    for source in (config, {} if "added_tokens_decoder" in config else special_tokens_map):
        special_tokens |= {role: source[role] for role in SPECIAL_TOKEN_KEYS if source.get(role) is not None}
    return config, special_tokens


def _read_added_tokens(folder: Path, tokenizer_json: Json, config: Json) -> dict[int, object]:
    """The tokens, by id, that the files list beside the vocabulary; the newest of the three places wins."""
    added_tokens: dict[int, object] = {}
    if (folder / "added_tokens.json").is_file():
        added_tokens = {int(i): name for name, i in read_json(folder / "added_tokens.json").items()}
    added_tokens |= {int(token["id"]): token for token in tokenizer_json.get("added_tokens") or ()}
    if "added_tokens_decoder" in config:
        added_tokens = {int(i): token for i, token in config["added_tokens_decoder"].items()}
    return dict(sorted(added_tokens.items()))


def _tokens_to_add(
    added_tokens: Mapping[int, object], special_tokens: Json, openai_compatible: bool
) -> Iterator[AddedToken]:
    """Tokens matched as a whole before splitting into words: the listed ones by id, then those with a role."""
    special_names = {_token_content(role) for role in special_tokens.values()}
    skipped = (
        {_token_content(special_tokens["pad_token"])} - {BOS_TOKEN, EOS_TOKEN} if openai_compatible else set[str]()
    )
    seen = set(skipped)
    for token in (*added_tokens.values(), *(special_tokens[role] for role in SPECIAL_TOKEN_KEYS)):
        name = _token_content(token)
        if name not in seen:
            yield _to_added_token(token, special=name in special_names)
        seen.add(name)


def _check_added_token_ids(backend: tokenizers.Tokenizer, added_tokens: Mapping[int, object], folder: Path) -> None:
    for i, token in added_tokens.items():
        found = backend.token_to_id(_token_content(token))
        if found != i:
            raise CheckpointError(
                f"{folder}: added token {_token_content(token)!r} gets id {found}, the files say {i}."
            )


def _token_content(token: object) -> str:
    """A token as it is typed; files give either that or an object with flags."""
    return str(token["content"] if is_object(token) else token)


def _to_added_token(token: object, special: bool) -> AddedToken:
    if not is_object(token):
        return AddedToken(str(token), special=special, normalized=not special)
    flags = {flag: bool(token.get(flag)) for flag in ADDED_TOKEN_FLAGS}
    return AddedToken(_token_content(token), special=special or bool(token.get("special")), **flags)


def _added_token_json(token: AddedToken) -> Json:
    return {"content": token.content} | {flag: getattr(token, flag) for flag in ADDED_TOKEN_FLAGS}


def _token_id(backend: tokenizers.Tokenizer, name: str, folder: Path) -> int:
    found = backend.token_to_id(name)
    if found is None:
        raise CheckpointError(f"{folder}: the vocabulary has no token {name!r}; expected CLIP's vocabulary.")
    return found
