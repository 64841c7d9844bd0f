"""What a repository holds, and which of its files a model needs."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import Any, cast

from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.hub.cache import WEIGHTS, is_commit
from enlarger.hub.fetch import SAFE, Wanted
from enlarger.hub.names import Book, Source
from enlarger.hub.transport import Client

INDEX = "model_index.json"
CARD = "README.md"
SHARD_INDEX = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\.safetensors\.index(?:\.(\w+))?\.json")
OTHER_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb")
SMALL = 20_000_000  # bytes of the largest file that is no weights: tokenizer.json has 2 million


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit."""

    repository: str
    revision: str
    files: Mapping[str, Wanted]


def hub_client(book: Book, mirror: str | None, endpoint: str | None) -> Client:
    """How to reach the hub: at `mirror`, else at `endpoint` (HF_ENDPOINT), else where the book says.

    A mirror gets no token: it was given to the hub alone.
    """
    from huggingface_hub import get_token

    if mirror is not None:
        return Client(mirror.rstrip("/"), book.hosts)
    return Client((endpoint or book.endpoint).rstrip("/"), book.hosts, get_token())


def file_url(client: Client, listing: Listing, path: str) -> str:
    """Where a file can be had."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.repository, path, revision=listing.revision, endpoint=client.endpoint)


def read_listing(client: Client, book: Book, source: Source, revision: str) -> Listing:
    """Ask the hub. Raises CheckpointError in one line if the repository is gone or closed."""
    from urllib.parse import quote

    from huggingface_hub.hf_api import ModelInfo

    url = f"{client.endpoint}/api/models/{source.repository}/revision/{quote(revision, safe='')}?blobs=true"
    status, headers, body = client.read(url)
    if status != 200:
        raise CheckpointError(_refused(status, headers, client, book, source, revision))
    try:
        info = ModelInfo(**json.loads(body))
        files = {item.rfilename: _wanted(item) for item in info.siblings or () if SAFE.fullmatch(item.rfilename)}
        commit = str(info.sha)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{source.repository}: {client.endpoint} does not answer as the hub does ({error!r}); try another --mirror."
        ) from error
    if not is_commit(commit):
        raise CheckpointError(f"{source.repository}: {client.endpoint} names no commit; try another --mirror.")
    return Listing(source.repository, commit, files)


def _wanted(item: Any) -> Wanted:
    """A file of a ModelInfo."""
    if item.size is None:
        raise ValueError(f"{item.rfilename}: no size")
    if item.lfs is None:
        return Wanted(item.rfilename, item.size, git=item.blob_id)
    return Wanted(item.rfilename, item.size, sha256=item.lfs.sha256)


def _refused(status: int, headers: HTTPMessage, client: Client, book: Book, source: Source, revision: str) -> str:
    """One line on why the hub does not list a repository. It answers 401 for one that is not there, without a token."""
    code, name = headers.get("X-Error-Code"), source.repository
    if code == "GatedRepo" or (status == 403 and code is None):
        where = f"{client.endpoint}/{name}"
        return f"{name}: gated; accept its conditions at {where}, then log in (hf auth login) or set HF_TOKEN."
    if code == "RevisionNotFound":
        return f"{name}: has no revision {revision!r}; leave out --revision, or give a commit, branch or tag of it."
    if status in (401, 404, 410) or code == "RepoNotFound":
        why = book.gone.get(name, "not on the hub, or private (then log in: hf auth login)")
        other = book.instead(name)
        alias = book.owner(name)
        if other is None:
            return f"{name}: {why}."
        same = alias.name if alias is not None and other == alias.repository else other
        return f"{name}: {why}; {other} holds the same files: enlarger pull {same}"
    again = "; it is busy, try again later" if status == 429 or status >= 500 else ""
    return f"{name}: {client.endpoint} answers {status}{again}."


def select(listing: Listing, index: Mapping[str, Any] | None, variant: str | None) -> list[Wanted]:
    """The files that a model needs: the card, configurations, vocabularies, and one set of safetensors per network.

    A part without the variant is taken plain, unless no part has it.
    """
    if index is None:
        folders = [""]
    else:
        parts = (name for name, value in index.items() if _is_part(value) and not name.startswith("_"))
        folders = ["", *(f"{name}/" for name in parts)]
    weights = {folder: _weights(listing, folder) for folder in folders if folder or index is None}
    _check_variant(listing, weights, variant)
    names = [path for path in listing.files if _is_small(listing.files[path], folders, index is None)]
    for folder, sets in weights.items():
        names += sets.get(variant) or sets.get(None) or _single(listing, folder, sets, index)
    return [listing.files[path] for path in dict.fromkeys(names)]


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(cast("list[Any]", value)) == 2 and isinstance(value[1], str)


def _inside(paths: Iterable[str], folder: str) -> list[str]:
    """The paths of the files that lie in a folder itself."""
    return [path for path in paths if path.startswith(folder) and "/" not in path[len(folder) :]]


def _is_small(wanted: Wanted, folders: Sequence[str], single: bool) -> bool:
    folder, name = wanted.path[: wanted.path.rfind("/") + 1], wanted.path.rpartition("/")[2]
    if folder not in folders or wanted.size > SMALL or ".index." in name:
        return False
    if not folder and not single:
        return name in (INDEX, CARD) or name.upper().startswith("LICENSE")
    return name == CARD or name.upper().startswith("LICENSE") or name.endswith((".json", ".txt"))


def _weights(listing: Listing, folder: str) -> dict[str | None, list[str]]:
    """The safetensors of each variant in a folder: the whole file, or else the shards and their index."""
    whole: dict[str | None, list[str]] = {}
    shards: dict[str | None, list[str]] = {}
    for path in _inside(listing.files, folder):
        name = path[len(folder) :]
        match, index = WEIGHTS.fullmatch(name), SHARD_INDEX.fullmatch(name)
        if match is not None and match[2] is None:
            whole.setdefault(match[1], []).append(path)
        elif match is not None or index is not None:
            shards.setdefault((match or index or [None] * 2)[1], []).append(path)
    return shards | whole


def _check_variant(listing: Listing, weights: Mapping[str, dict[str | None, list[str]]], variant: str | None) -> None:
    known = sorted({name for sets in weights.values() for name in sets if name not in (None, "non_ema")})
    if variant is not None and variant not in known:
        offer = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(
            f"{listing.repository}: no variant {variant!r} in safetensors; {offer}, or leave out --variant"
        )


def _single(
    listing: Listing, folder: str, sets: Mapping[str | None, list[str]], index: Mapping[str, Any] | None
) -> list[str]:
    """For a folder without plain weights: nothing if it needs none, the one file if the repository is one file."""
    inside = _inside(listing.files, folder)
    tensors = [path for path in inside if path.endswith(".safetensors")]
    if index is None and len(tensors) == 1:
        return tensors
    there = ", ".join(sorted(str(name) for name in sets if name is not None))
    if there:
        raise Unsupported(f"{listing.repository}: {folder} has safetensors of {there} alone; add --variant")
    others = [path for path in inside if path.endswith(OTHER_WEIGHTS)]
    if index is None and tensors:
        raise Unsupported(f"{listing.repository}: not in diffusers' layout, but single files: {', '.join(tensors)}; "
                          "fetch the one you want yourself and give its path")  # fmt: skip
    if others or index is None:
        found = ", ".join(path.rpartition("/")[2] for path in others[:3]) or "no weights"
        raise Unsupported(
            f"{listing.repository}: {folder or 'the repository'} holds {found}, but no safetensors; "
            "only safetensors are pulled: look for a repository or a --revision that has them"
        )
    return []
