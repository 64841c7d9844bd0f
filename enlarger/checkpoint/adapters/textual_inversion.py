"""Textual inversion (Gal et al. 2022): learned vectors that a word in the prompt stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from enlarger.checkpoint.adapters.embedding_picture import is_picture, read_embedding_picture
from enlarger.checkpoint.tensors.open import is_pickle, open_checkpoint
from enlarger.checkpoint.tensors.pickle_guard import load_pickle
from enlarger.errors import CheckpointError, InputError, list_names
from enlarger.nn.clip_text import ClipText, Embeddings
from enlarger.text.tokenize import Tokenizer

LEARNED_EMBEDS = "learned_embeds"  # diffusers' file name in a folder
ENCODER_KEYS = {"clip_l": "clip_l", "clip_g": "clip_g", "text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
ENCODER_BY_WIDTH = {768: "SD1 or SDXL's first encoder", 1024: "SD2", 1280: "SDXL's second encoder"}


@dataclass(frozen=True, eq=False)
class TextualInversion:
    """The token that is typed, and what it stands for: n vectors for each text encoder that the file is for."""

    token: str
    vectors: Mapping[str, Tensor]  # (n, D) under "clip_l" and "clip_g" where the file says so, else under D: "768"


def read_textual_inversion(
    source: str | Path | Mapping[str, Any] | Tensor, token: str | None = None, *, allow_pickle: bool = False
) -> TextualInversion:
    """Read a file, a diffusers folder, or take what such a file contains, bare vectors too.

    Known are diffusers' layout ({token: vectors}), AUTOMATIC1111's (`emb_params`, `string_to_param`) and the one for
    SDXL's two encoders (`clip_l` with `clip_g`), and AUTOMATIC1111's embeddings in pictures. `token` renames it; in a
    file of several tokens it picks one. A file that names none gets its own name. Pickles (.pt, .bin) are refused
    unless `allow_pickle`, and then read through the guard, so that no code in them runs. Raises CheckpointError, naming
    what was found.
    """
    label, data, file_stem = _load_source(source, allow_pickle)
    stated_token, vectors = _parse_layout(data, token, label)
    name = next((given for given in (token, stated_token, file_stem) if given is not None), "")
    if not name.strip():
        raise InputError(f"{label}: the token is empty or missing; give one with token='<name>'.")
    checked = {key: _check_vectors(value, f"{label}: {key or name}") for key, value in vectors.items()}
    if len({len(value) for value in checked.values()}) > 1:
        counts = ", ".join(f"{len(value)} for {key}" for key, value in checked.items())
        raise CheckpointError(f"{label}: found {counts}, expected as many vectors for each text encoder.")
    return TextualInversion(name.strip(), {key or str(value.shape[1]): value for key, value in checked.items()})


def add_textual_inversion(
    tokenizer: Tokenizer, encoder: ClipText, inversion: TextualInversion, *, encoder_key: str | None = None
) -> tuple[Tokenizer, ClipText]:
    """A tokenizer and an encoder that know the token; what is given stays as it is.

    The tokens are `name`, `name_1`, `name_2` and so on; a prompt with `name` gets them all. The new encoder shares
    every weight but the table of embeddings, so it lies on the same device. Its pooled features are those at the end
    token, where "the largest id" (old config files) would now find the new token. `encoder_key` ("clip_l" or
    "clip_g") says which vectors to take where both would fit. Raises InputError for another width or a token that
    exists.
    """
    vectors = _select_vectors(inversion, encoder.config.width, encoder_key)
    names = [inversion.token, *(f"{inversion.token}_{k}" for k in range(1, len(vectors)))]
    extended = _extend_tokenizer(tokenizer, names)
    ids = [cast(int, extended.backend.token_to_id(name)) for name in names]
    weight = encoder.embeddings.token_embedding.weight
    if ids[0] > len(weight):
        raise InputError(
            f"the tokenizer has {ids[0]} tokens and the text encoder {len(weight)} embeddings, expected both of one "
            "model."
        )
    table = torch.cat([weight.detach(), weight.new_zeros(max(ids[-1] + 1 - len(weight), 0), weight.shape[1])])
    table[ids] = vectors.to(table)
    return extended, _replace_token_embedding(encoder, table, tokenizer.eos_token_id)


def _load_source(
    source: str | Path | Mapping[str, Any] | Tensor, allow_pickle: bool
) -> tuple[str, Mapping[str, Any], str | None]:
    """What errors call it, what it contains, and the name of its file."""
    if isinstance(source, Tensor):
        return "the inversion", {"emb_params": source}, None
    if isinstance(source, Mapping):
        return "the inversion", source, None
    path = _resolve_file(Path(source), allow_pickle)
    return str(path), _load_tensors(path), path.stem


def _resolve_file(path: Path, allow_pickle: bool) -> Path:
    """The file itself, or the one that diffusers puts into a folder."""
    if path.is_dir():
        endings = (".safetensors", ".bin") if allow_pickle else (".safetensors",)
        names = [f"{LEARNED_EMBEDS}{ending}" for ending in endings]
        existing = [path / name for name in names if (path / name).is_file()]
        if not existing:
            listing = ", ".join(sorted(one.name for one in path.iterdir())) or "nothing"
            raise CheckpointError(f"{path}: no {' or '.join(names)}; found {listing}. Name the file itself.")
        path = existing[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a textual inversion (.safetensors).")
    if not allow_pickle and is_pickle(path):
        raise CheckpointError(
            f"{path}: a pickle, a kind of file that can run code when opened; expected .safetensors. Where you trust "
            "the file, give allow_pickle=True (--allow-pickle on the command line): then only tensors are read from it."
        )
    return path


def _load_tensors(path: Path) -> Mapping[str, Any]:
    try:
        if is_pickle(path):
            data = load_pickle(path)
            return {"emb_params": data} if isinstance(data, Tensor) else {str(key): each for key, each in data.items()}
        if is_picture(path):
            return read_embedding_picture(path)
        weights = open_checkpoint(path)
        return {name: weights.get_tensor(name) for name in weights.keys()}
    except CheckpointError as error:
        problem = str(error).removeprefix(f"{path}: ")
        raise CheckpointError(f"{path}: cannot be read as a textual inversion ({problem})") from error


def _parse_layout(data: Mapping[str, Any], token: str | None, label: str) -> tuple[str | None, dict[str, Any]]:
    """The token, where the file says it, and its vectors by text encoder; "" where the file names none."""
    if data and data.keys() <= ENCODER_KEYS.keys():
        return None, {encoder: data[key] for key, encoder in ENCODER_KEYS.items() if key in data}
    if "string_to_param" in data:
        name = data.get("name")
        return (name if isinstance(name, str) else None), {"": _string_to_param(data["string_to_param"], token, label)}
    if "emb_params" in data:
        return None, {"": data["emb_params"]}
    tensors = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    if token in tensors:
        return token, {"": tensors[token]}
    if len(tensors) == 1:
        return next((key, {"": value}) for key, value in tensors.items())
    if not tensors:
        raise CheckpointError(f"{label}: no vectors found; expected {{token: tensor}}, emb_params or string_to_param.")
    raise CheckpointError(
        f"{label}: {len(tensors)} tensors ({list_names(list(tensors))}), expected the vectors of one token; "
        "pick one with token=."
    )


def _string_to_param(params: Any, token: str | None, label: str) -> Any:
    """The vectors under `token`, under "*", or the only ones."""
    vectors: dict[str, Any] = dict(cast("Mapping[str, Any]", params)) if isinstance(params, Mapping) else {}
    for key in (token, "*", *vectors):
        if key in vectors and (key in (token, "*") or len(vectors) == 1):
            return vectors[key]
    found = list_names(list(vectors)) if vectors else "nothing"
    raise CheckpointError(f"{label}: string_to_param holds no '*' but {found}; pick a key with token=.")


def _check_vectors(value: Any, label: str) -> Tensor:
    """(n, D), a copy in memory of its own."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise CheckpointError(f"{label} is {found}, expected vectors of floating-point numbers.")
    if value.dim() not in (1, 2) or not value.numel():
        raise CheckpointError(f"{label} has shape {tuple(value.shape)}, expected (vectors, width) or (width).")
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{label} has values that are not finite; fetch the file again.")
    return value.detach().clone().reshape(-1, value.shape[-1])


def _select_vectors(inversion: TextualInversion, width: int, encoder_key: str | None) -> Tensor:
    """The vectors for an encoder of that width."""
    candidates = inversion.vectors
    if encoder_key is not None and encoder_key not in ENCODER_KEYS.values():
        raise InputError(f"encoder_key is {encoder_key!r}, expected clip_l or clip_g.")
    if encoder_key is not None and candidates.keys() & ENCODER_KEYS.keys():  # else the width decides
        candidates = {key: value for key, value in candidates.items() if key == encoder_key}
        if not candidates:
            raise InputError(
                f"{inversion.token!r} has vectors for {' and '.join(inversion.vectors)}, none for {encoder_key}."
            )
    matching = {key: value for key, value in candidates.items() if value.shape[1] == width}
    if len(matching) > 1:
        raise InputError(
            f"{' and '.join(matching)} of {inversion.token!r} are both {width} wide; say which with encoder_key=."
        )
    if matching:
        return next(iter(matching.values()))
    found = " and ".join(_describe_width(value.shape[1]) for value in candidates.values())
    raise InputError(
        f"the vectors of {inversion.token!r} are {found}, the text encoder is {_describe_width(width)}; "
        "use an inversion that was made for this model."
    )


def _describe_width(width: int) -> str:
    return f"{width} wide" + (f" ({ENCODER_BY_WIDTH[width]})" if width in ENCODER_BY_WIDTH else "")


def _extend_tokenizer(tokenizer: Tokenizer, names: list[str]) -> Tokenizer:
    """The tokenizer with these tokens; they neither exist, in any case, nor join or lengthen another inversion."""
    added_tokens = {token.content.lower() for token in tokenizer.backend.get_added_tokens_decoder().values()}
    for name in names:
        known = any(tokenizer.backend.token_to_id(typed) is not None for typed in (name, name.lower()))
        if known or name.lower() in added_tokens:
            raise InputError(f"the tokenizer already knows {name!r}; choose another name with token=.")
    extended = tokenizer.with_added_tokens(names)
    changed_groups = [
        group
        for first, group in extended.multi_vector_tokens.items()
        if tokenizer.multi_vector_tokens.get(first) != group
    ]
    expected_lengths = [len(names)] if len(names) > 1 else []
    if [len(group) for group in changed_groups] != expected_lengths:
        raise InputError(
            f"{names[0]!r} and a token that is there read as vectors of one; choose another name with token=."
        )
    return extended


def _replace_token_embedding(encoder: ClipText, weight: Tensor, eos_token_id: int) -> ClipText:
    """An encoder of the same modules around another table of embeddings."""
    config = replace(encoder.config, vocab_size=len(weight), eos_token_id=eos_token_id)
    old_weight = encoder.embeddings.token_embedding.weight
    with torch.device("meta"):
        clone, embeddings = ClipText(config), Embeddings(config)
    for name, module in encoder.named_children():
        setattr(clone, name, module)
    embeddings.position_embedding = encoder.embeddings.position_embedding
    embeddings.token_embedding = nn.Embedding.from_pretrained(weight, freeze=not old_weight.requires_grad)
    clone.embeddings = embeddings
    for module in (clone, embeddings, embeddings.token_embedding):
        module.training = encoder.training  # not `train()`, which would reach the shared modules
    return clone
