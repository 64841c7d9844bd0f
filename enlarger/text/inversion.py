"""Textual inversion (Gal et al. 2022): learned vectors that a word in the prompt stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from enlarger.errors import CheckpointError, InputError
from enlarger.nn.clip_text import ClipText, Embeddings
from enlarger.text.tokenize import Tokenizer

PICKLES = (".pt", ".bin", ".pth")
STEM = "learned_embeds"  # diffusers' file name in a folder
PARTS = {"clip_l": "clip_l", "clip_g": "clip_g", "text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
FAMILIES = {768: "SD1 or SDXL's first encoder", 1024: "SD2", 1280: "SDXL's second encoder"}


@dataclass(frozen=True, eq=False)
class Inversion:
    """The token that is typed, and what it stands for: n vectors for each text encoder that the file is for."""

    token: str
    vectors: Mapping[str, Tensor]  # (n, D) under "clip_l" and "clip_g" where the file says so, else under D: "768"


def read_inversion(
    source: str | Path | Mapping[str, Any] | Tensor, token: str | None = None, *, allow_pickle: bool = False
) -> Inversion:
    """Read a file, a diffusers folder, or take what such a file contains, bare vectors too.

    Known are diffusers' layout ({token: vectors}), AUTOMATIC1111's (`emb_params`, `string_to_param`) and the one for
    SDXL's two encoders (`clip_l` with `clip_g`). `token` renames it; in a file of several tokens it picks one. A file
    that names none gets its own name. Pickles (.pt, .bin) are refused unless `allow_pickle`, and then opened as
    tensors only, so that no code in them runs. Raises CheckpointError, naming what was found.
    """
    where, data, own = _open(source, allow_pickle)
    named, vectors = _recognise(data, token, where)
    name = next((given for given in (token, named, own) if given is not None), "")
    if not name.strip():
        raise InputError(f"{where}: the token is empty or missing; give one with token='<name>'.")
    checked = {key: _vectors(value, f"{where}: {key or name}") for key, value in vectors.items()}
    if len({len(value) for value in checked.values()}) > 1:
        counts = ", ".join(f"{len(value)} for {key}" for key, value in checked.items())
        raise CheckpointError(f"{where}: found {counts}, expected as many vectors for each text encoder.")
    return Inversion(name.strip(), {key or str(value.shape[1]): value for key, value in checked.items()})


def add_inversion(
    tokenizer: Tokenizer, encoder: ClipText, inversion: Inversion, *, part: str | None = None
) -> tuple[Tokenizer, ClipText]:
    """A tokenizer and an encoder that know the token; what is given stays as it is.

    The tokens are `name`, `name_1`, `name_2` and so on; a prompt with `name` gets them all. The new encoder shares
    every weight but the table of embeddings, so it lies on the same device. Its pooled features are those at the end
    token, where "the largest id" (old config files) would now find the new token. `part` ("clip_l" or "clip_g") says
    which vectors to take where both would fit. Raises InputError for another width or a token that exists.
    """
    vectors = _fitting(inversion, encoder.config.width, part)
    names = [inversion.token, *(f"{inversion.token}_{k}" for k in range(1, len(vectors)))]
    grown = _grown(tokenizer, names)
    ids = [cast(int, grown.backend.token_to_id(name)) for name in names]
    old = encoder.embeddings.token_embedding.weight
    if ids[0] > len(old):
        raise InputError(
            f"the tokenizer has {ids[0]} tokens and the text encoder {len(old)} embeddings, expected both of one model."
        )
    table = torch.cat([old.detach(), old.new_zeros(max(ids[-1] + 1 - len(old), 0), old.shape[1])])
    table[ids] = vectors.to(table)
    return grown, _with_table(encoder, table, tokenizer.end)


def _open(
    source: str | Path | Mapping[str, Any] | Tensor, allow_pickle: bool
) -> tuple[str, Mapping[str, Any], str | None]:
    """What errors call it, what it contains, and the name of its file."""
    if isinstance(source, Tensor):
        return "the inversion", {"emb_params": source}, None
    if isinstance(source, Mapping):
        return "the inversion", source, None
    path = _find(Path(source), allow_pickle)
    return str(path), _load(path), path.stem


def _find(path: Path, allow_pickle: bool) -> Path:
    """The file itself, or the one that diffusers puts into a folder."""
    if path.is_dir():
        endings = (".safetensors", ".bin") if allow_pickle else (".safetensors",)
        names = [f"{STEM}{ending}" for ending in endings]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            there = ", ".join(sorted(one.name for one in path.iterdir())) or "nothing"
            raise CheckpointError(f"{path}: no {' or '.join(names)}; found {there}. Name the file itself.")
        path = found[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a textual inversion (.safetensors).")
    if path.suffix.lower() in PICKLES and not allow_pickle:
        raise CheckpointError(
            f"{path}: a pickle, a kind of file that can run code when opened; expected .safetensors. "
            "Where you trust the file, give allow_pickle=True: then only tensors are read from it."
        )
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.suffix.lower() not in PICKLES:
            return dict(safetensors.torch.load_file(path))
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip files each raise kinds of their own
        raise CheckpointError(f"{path}: cannot be read as a textual inversion ({_short(error)}).") from error
    if isinstance(data, Tensor):
        return {"emb_params": data}
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path}: found a {type(data).__name__}, expected named tensors.")
    return {str(key): value for key, value in cast("Mapping[Any, Any]", data).items()}


def _recognise(data: Mapping[str, Any], token: str | None, where: str) -> tuple[str | None, dict[str, Any]]:
    """The token, where the file says it, and its vectors by text encoder; "" where the file names none."""
    if data and data.keys() <= PARTS.keys():
        return None, {part: data[key] for key, part in PARTS.items() if key in data}
    if "string_to_param" in data:
        params: Any = data["string_to_param"]
        if not isinstance(params, Mapping) or "*" not in params:
            raise CheckpointError(f"{where}: string_to_param holds no '*', expected the vectors there.")
        name = data.get("name")
        return (name if isinstance(name, str) else None), {"": params["*"]}
    if "emb_params" in data:
        return None, {"": data["emb_params"]}
    tensors = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    if token in tensors:
        return token, {"": tensors[token]}
    if len(tensors) == 1:
        return next((key, {"": value}) for key, value in tensors.items())
    if not tensors:
        raise CheckpointError(f"{where}: no vectors found; expected {{token: tensor}}, emb_params or string_to_param.")
    names = ", ".join(list(tensors)[:10])
    raise CheckpointError(
        f"{where}: {len(tensors)} tensors ({names}), expected the vectors of one token; pick one with token=."
    )


def _vectors(value: Any, where: str) -> Tensor:
    """(n, D), a copy in memory of its own."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise CheckpointError(f"{where} is {found}, expected vectors of floating-point numbers.")
    if value.dim() not in (1, 2) or not value.numel():
        raise CheckpointError(f"{where} has shape {tuple(value.shape)}, expected (vectors, width) or (width).")
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{where} has values that are not finite; fetch the file again.")
    return value.detach().clone().reshape(-1, value.shape[-1])


def _fitting(inversion: Inversion, width: int, part: str | None) -> Tensor:
    """The vectors for an encoder of that width."""
    named = inversion.vectors
    if part is not None and part not in PARTS.values():
        raise InputError(f"part is {part!r}, expected clip_l or clip_g.")
    if part is not None and named.keys() & PARTS.keys():  # where the file names no part, the width decides
        named = {key: value for key, value in named.items() if key == part}
        if not named:
            raise InputError(f"{inversion.token!r} has vectors for {' and '.join(inversion.vectors)}, none for {part}.")
    fitting = {key: value for key, value in named.items() if value.shape[1] == width}
    if len(fitting) > 1:
        raise InputError(f"{' and '.join(fitting)} of {inversion.token!r} are both {width} wide; say which with part=.")
    if fitting:
        return next(iter(fitting.values()))
    found = " and ".join(_described(value.shape[1]) for value in named.values())
    raise InputError(
        f"the vectors of {inversion.token!r} are {found}, the text encoder is {_described(width)}; "
        "use an inversion that was made for this model."
    )


def _described(width: int) -> str:
    return f"{width} wide" + (f" ({FAMILIES[width]})" if width in FAMILIES else "")


def _grown(tokenizer: Tokenizer, names: list[str]) -> Tokenizer:
    """The tokenizer with these tokens; they neither exist, in any case, nor join or lengthen another inversion."""
    added = {token.content.lower() for token in tokenizer.backend.get_added_tokens_decoder().values()}
    for name in names:
        known = any(tokenizer.backend.token_to_id(typed) is not None for typed in (name, name.lower()))
        if known or name.lower() in added:
            raise InputError(f"the tokenizer already knows {name!r}; choose another name with token=.")
    grown = tokenizer.with_tokens(names)
    changed = [group for first, group in grown.groups.items() if tokenizer.groups.get(first) != group]
    expected = [len(names)] if len(names) > 1 else []
    if [len(group) for group in changed] != expected:
        raise InputError(
            f"{names[0]!r} and a token that is there read as parts of one; choose another name with token=."
        )
    return grown


def _with_table(encoder: ClipText, table: Tensor, end: int) -> ClipText:
    """An encoder of the same parts around another table of embeddings."""
    config = replace(encoder.config, vocabulary=len(table), end_token=end)
    old = encoder.embeddings.token_embedding.weight
    with torch.device("meta"):
        made, embeddings = ClipText(config), Embeddings(config)
    for name, module in encoder.named_children():
        setattr(made, name, module)
    embeddings.position_embedding = encoder.embeddings.position_embedding
    embeddings.token_embedding = nn.Embedding.from_pretrained(table, freeze=not old.requires_grad)
    made.embeddings = embeddings
    for module in (made, embeddings, embeddings.token_embedding):
        module.training = encoder.training  # not `train()`, which would reach the shared parts
    return made


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
