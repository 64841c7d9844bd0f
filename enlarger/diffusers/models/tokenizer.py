"""`CLIPTokenizer`: our tokenizer with transformers' call."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError, MissingFile
from enlarger.errors import Unsupported
from enlarger.text.tokenize import Tokenizer

NO_EFFECT = ("verbose", "return_attention_mask")


class BatchEncoding(dict[str, Any]):
    """Ids and their mask, by key or attribute."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the encoding has no {name!r}; it has {', '.join(self)}")
        return self[name]

    def to(self, device: Device) -> "BatchEncoding":
        return BatchEncoding({n: v.to(device) if isinstance(v, Tensor) else v for n, v in self.items()})


class CLIPTokenizer:
    """Texts to token ids. `native` is the tokenizer as our own code takes it."""

    def __init__(self, native: Tokenizer) -> None:
        self.native = native

    @classmethod
    def from_pretrained(cls, path: str | Path, subfolder: str | None = None, **_: object) -> Self:
        """Read a tokenizer's local folder."""
        folder = Path(path) / (subfolder or "")
        if not folder.is_dir():
            raise MissingFile(f"{folder}: no such folder, and nothing is downloaded here; give a local folder")
        return cls(Tokenizer.from_folder(folder))

    @classmethod
    def of_theirs(cls, tokenizer: Any) -> Self:
        """A tokenizer of transformers, read from the files that it writes."""
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return cls(Tokenizer.from_folder(folder))

    def save_pretrained(self, save_directory: str | Path, **_: object) -> None:
        """Write a folder that transformers reads."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.native.to_files().items():
            (folder / name).write_text(text, "utf-8")

    def __call__(
        self,
        text: str | Sequence[str],
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool | str = False,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **others: object,
    ) -> BatchEncoding:
        """Ids with start and end; `padding` "max_length" or "longest", cut at `max_length` with `truncation`."""
        if given := [name for name, value in others.items() if name not in NO_EFFECT and value not in (None, False)]:
            raise Unsupported(f"the tokenizer takes no {', '.join(given)}; leave it out")
        alone, pads = isinstance(text, str), padding not in (False, None, "do_not_pad")
        most = self.model_max_length if max_length is None else max_length
        cuts = truncation not in (False, None, "do_not_truncate")
        texts = [text] if isinstance(text, str) else text
        rows = [self._row(one, most if cuts else None, add_special_tokens) for one in texts]
        made = self._padded(rows, most if padding == "max_length" else None, pads, return_tensors)
        return BatchEncoding({n: v[0] for n, v in made.items()}) if alone and return_tensors is None else made

    def _padded(
        self, rows: list[list[int]], width: int | None, pads: bool, return_tensors: str | None
    ) -> BatchEncoding:
        """Rows and their mask, padded to a width (None: the longest row's), as lists, tensors or arrays."""
        width = max(map(len, rows)) if width is None else width
        padded = [row + [self.pad_token_id] * (width - len(row)) if pads else row for row in rows]
        mask = [[1] * len(row) + [0] * (len(full) - len(row)) for row, full in zip(rows, padded, strict=True)]
        if return_tensors not in (None, "pt", "np"):
            raise ArgumentError(f"return_tensors is {return_tensors!r}, expected 'pt', 'np' or None")
        found: dict[str, Any] = {"input_ids": padded, "attention_mask": mask}
        if return_tensors is not None:
            found = {name: torch.tensor(value) for name, value in found.items()}
            found = {name: value.numpy() for name, value in found.items()} if return_tensors == "np" else found
        return BatchEncoding(found)

    def _row(self, text: str, most: int | None, with_ends: bool) -> list[int]:
        ids = self.native.ids_of(text)
        if not with_ends:
            return ids if most is None else ids[:most]
        return [self.bos_token_id, *(ids if most is None else ids[: most - 2]), self.eos_token_id]

    def add_tokens(self, new_tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Have the tokenizer match these as a whole, in any case, and say how many are new; they get the next free ids.

        The text encoder needs a row for each: `text_encoder.resize_token_embeddings(len(tokenizer))`.
        """
        listed = [new_tokens] if isinstance(new_tokens, str) else new_tokens
        names = dict.fromkeys(str(getattr(token, "content", token)) for token in listed)
        new = [name for name in names if self.native.backend.token_to_id(name) is None]
        self.native = self.native.with_added_tokens(new) if new else self.native
        return len(new)

    def pad(
        self, encoded_inputs: Mapping[str, Any], padding: bool | str = True, max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:  # fmt: skip
        """Rows of ids, and their mask, to the length of the longest, or to `max_length`."""
        rows: list[list[int]] = [list(row) for row in encoded_inputs["input_ids"]]
        pads = padding not in (False, None, "do_not_pad")
        most = self.model_max_length if max_length is None else max_length
        return self._padded(rows, most if padding == "max_length" else None, pads, return_tensors)

    def encode(self, text: str, **options: Any) -> Any:
        """The ids of a text; options as for a call."""
        return self(text, **options).input_ids

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without start and end."""
        return [str(self.native.backend.id_to_token(i)) for i in self.native.ids_of(text)]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, that of the end for an unknown one; of several a list."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.native.backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: Iterable[int | Tensor]) -> list[str | None]:
        return [self.native.backend.id_to_token(int(i)) for i in ids]

    def decode(self, token_ids: Iterable[int | Tensor], skip_special_tokens: bool = False, **_: object) -> str:
        """The text of ids."""
        tokens = [token for token in self.convert_ids_to_tokens(token_ids) if token is not None]
        special = ("<|startoftext|>", "<|endoftext|>")
        kept = [token for token in tokens if not (skip_special_tokens and token in special)]
        return "".join(token.replace("</w>", " ") for token in kept).strip()

    def batch_decode(
        self, sequences: Iterable[Iterable[int | Tensor]], skip_special_tokens: bool = False, **_: object
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def get_vocab(self) -> Mapping[str, int]:
        return self.native.backend.get_vocab()

    def __len__(self) -> int:
        return self.native.backend.get_vocab_size()

    @property
    def model_max_length(self) -> int:
        return self.native.model_max_length

    @property
    def vocab_size(self) -> int:
        return self.native.backend.get_vocab_size(with_added_tokens=False)

    @property
    def bos_token_id(self) -> int:
        return self.native.bos_token_id

    @property
    def eos_token_id(self) -> int:
        return self.native.eos_token_id

    @property
    def pad_token_id(self) -> int:
        return self.native.pad_token_id

    @property
    def unk_token_id(self) -> int:
        return self.native.eos_token_id

    @property
    def bos_token(self) -> str:
        return str(self.native.backend.id_to_token(self.bos_token_id))

    @property
    def eos_token(self) -> str:
        return str(self.native.backend.id_to_token(self.eos_token_id))

    @property
    def unk_token(self) -> str:
        return self.eos_token

    @property
    def pad_token(self) -> str:
        return str(self.native.backend.id_to_token(self.pad_token_id))

    @property
    def all_special_ids(self) -> list[int]:
        return list(dict.fromkeys((self.bos_token_id, self.eos_token_id, self.pad_token_id)))

    @property
    def all_special_tokens(self) -> list[str]:
        return [str(self.native.backend.id_to_token(i)) for i in self.all_special_ids]

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}

    @property
    def padding_side(self) -> str:
        return "right"

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        decoder = self.native.backend.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        return self.added_tokens_encoder
