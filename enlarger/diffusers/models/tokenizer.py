"""`CLIPTokenizer`: our tokenizer with transformers' call."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError, MissingFile
from enlarger.text.tokenize import Tokenizer


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
        **_: object,
    ) -> BatchEncoding:
        """Ids with start and end; `padding` "max_length" or "longest", cut at `max_length` with `truncation`."""
        alone = isinstance(text, str)
        most = self.model_max_length if max_length is None else max_length
        rows = [self._row(one, most if truncation else None) for one in ([text] if isinstance(text, str) else text)]
        width = most if padding == "max_length" else max(map(len, rows))
        padded = [row + [self.pad_token_id] * (width - len(row)) if padding else row for row in rows]
        mask = [[1] * len(row) + [0] * (len(full) - len(row)) for row, full in zip(rows, padded, strict=True)]
        if return_tensors not in (None, "pt", "np"):
            raise ArgumentError(f"return_tensors is {return_tensors!r}, expected 'pt', 'np' or None")
        found: dict[str, Any] = {"input_ids": padded, "attention_mask": mask}
        if return_tensors is not None:
            found = {name: torch.tensor(value) for name, value in found.items()}
            found = {name: value.numpy() for name, value in found.items()} if return_tensors == "np" else found
        elif alone:
            found = {name: value[0] for name, value in found.items()}
        return BatchEncoding(found)

    def _row(self, text: str, most: int | None) -> list[int]:
        ids = self.convert_tokens_to_ids(self.tokenize(text))
        ids = ids if most is None else ids[: most - 2]
        return [self.native.bos_token_id, *ids, self.native.eos_token_id]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without start and end."""
        rows = self.native.tokenize_in_chunks(text).ids
        ends = {self.native.bos_token_id, self.native.eos_token_id}
        listed: list[list[int]] = [[int(i) for i in row] for row in rows]
        real = [row[1 : 1 + self._inner(row)] for row in listed]
        return [str(self.native.backend.id_to_token(i)) for row in real for i in row if i not in ends]

    def _inner(self, row: list[int]) -> int:
        return row.index(self.native.eos_token_id, 1) - 1

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        if isinstance(tokens, str):
            return self.native.backend.token_to_id(tokens)
        return [self.native.backend.token_to_id(token) for token in tokens]

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
