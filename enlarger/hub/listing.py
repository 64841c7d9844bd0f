"""What a repository holds, and which of its files a model needs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import Any

from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.hub.aliases import AliasTable, RepoSource, is_commit
from enlarger.hub.cache import WEIGHT_FILE
from enlarger.hub.fetch import SAFE_PATH, RemoteFile
from enlarger.hub.transport import HubClient
from enlarger.strict_json import Json, parse_json

MODEL_INDEX = "model_index.json"
MODEL_CARD = "README.md"
SHARD_INDEX = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\.safetensors\.index(?:\.(\w+))?\.json")
OTHER_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb")
MAX_SMALL_FILE = 20_000_000  # bytes of the largest file that is no weights: tokenizer.json has 2 million


@dataclass(frozen=True)
class RepoListing:
    """The files of a repository at a commit."""

    repository: str
    revision: str
    files: Mapping[str, RemoteFile]


def hub_client(alias_table: AliasTable, mirror: str | None, endpoint: str | None) -> HubClient:
    """How to reach the hub: at `mirror`, else at `endpoint` (HF_ENDPOINT), else where the alias table says.

    A mirror gets no token: it was given to the hub alone.
    """
    from huggingface_hub import get_token

    if mirror is not None:
        return HubClient(mirror.rstrip("/"), alias_table.allowed_hosts)
    return HubClient((endpoint or alias_table.endpoint).rstrip("/"), alias_table.allowed_hosts, get_token())


def file_url(client: HubClient, listing: RepoListing, path: str) -> str:
    """Where a file can be had."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.repository, path, revision=listing.revision, endpoint=client.endpoint)


def read_listing(client: HubClient, alias_table: AliasTable, source: RepoSource, revision: str) -> RepoListing:
    """Request the list of files. Raises CheckpointError in one line if the repository is gone or closed."""
    from urllib.parse import quote

    from huggingface_hub.hf_api import ModelInfo

    url = f"{client.endpoint}/api/models/{source.repository}/revision/{quote(revision, safe='')}?blobs=true"
    status, headers, body = client.read(url)
    if status != 200:
        raise CheckpointError(_explain_refusal(status, headers, client, alias_table, source, revision))
    try:
        info = ModelInfo(**parse_json(body))
        files = {
            item.rfilename: _remote_file(item) for item in info.siblings or () if SAFE_PATH.fullmatch(item.rfilename)
        }
        commit = str(info.sha)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{source.repository}: {client.endpoint} does not answer as the hub does ({error!r}); try another --mirror."
        ) from error
    if not is_commit(commit):
        raise CheckpointError(f"{source.repository}: {client.endpoint} names no commit; try another --mirror.")
    if is_commit(revision) and commit != revision:
        raise CheckpointError(
            f"{source.repository}: {client.endpoint} lists commit {commit[:12]}..., expected {revision[:12]}...; try "
            f"another --mirror, or take what it has: --revision {commit}"
        )
    return RepoListing(source.repository, commit, files)


def _remote_file(item: Any) -> RemoteFile:
    """A file of a ModelInfo."""
    if item.size is None:
        raise ValueError(f"{item.rfilename}: no size")
    if item.lfs is None:
        return RemoteFile(item.rfilename, item.size, git=item.blob_id)
    return RemoteFile(item.rfilename, item.size, sha256=item.lfs.sha256)


def _explain_refusal(
    status: int, headers: HTTPMessage, client: HubClient, alias_table: AliasTable, source: RepoSource, revision: str
) -> str:
    """One line on why the hub does not list a repository. It answers 401 for one that is not there, without a token."""
    code, name = headers.get("X-Error-Code"), source.repository
    if code == "GatedRepo" or (status == 403 and code is None):
        where = f"{client.endpoint}/{name}"
        return f"{name}: gated; accept its conditions at {where}, then log in (hf auth login) or set HF_TOKEN."
    if code == "RevisionNotFound":
        return f"{name}: has no revision {revision!r}; leave out --revision, or give a commit, branch or tag of it."
    if status in (401, 404, 410) or code == "RepoNotFound":
        reason = alias_table.unavailable.get(name, "not on the hub, or private (then log in: hf auth login)")
        replacement = alias_table.replacement(name)
        alias = alias_table.alias_of(name)
        if replacement is None:
            return f"{name}: {reason}."
        pull_name = alias.name if alias is not None and replacement == alias.repository else replacement
        return f"{name}: {reason}; {replacement} holds the same files: enlarger pull {pull_name}"
    retry_advice = "; it is busy, try again later" if status == 429 or status >= 500 else ""
    return f"{name}: {client.endpoint} answers {status}{retry_advice}."


def select_files(listing: RepoListing, index: Json | None, variant: str | None) -> list[RemoteFile]:
    """The files that a model needs: the card, configurations, vocabularies, and one set of safetensors per network.

    A part without the variant is taken plain, unless no part has it.
    """
    if index is None:
        folders = [""]
    else:
        components = (name for name, value in index.items() if _is_component(value) and not name.startswith("_"))
        folders = ["", *(f"{name}/" for name in components)]
    weights = {folder: _weights_by_variant(listing, folder) for folder in folders if folder or index is None}
    _check_variant(listing, weights, variant)
    names = [path for path in listing.files if _is_small(listing.files[path], folders, index is None)]
    for folder, variants in weights.items():
        names += variants.get(variant) or variants.get(None) or _fallback_weights(listing, folder, variants, index)
    return [listing.files[path] for path in dict.fromkeys(names)]


def _is_component(value: object) -> bool:
    match value:
        case [str(), str()]:
            return True
        case _:
            return False


def _files_in(paths: Iterable[str], folder: str) -> list[str]:
    """The paths of the files that lie in a folder itself."""
    return [path for path in paths if path.startswith(folder) and "/" not in path[len(folder) :]]


def _is_small(remote: RemoteFile, folders: Sequence[str], is_single_folder: bool) -> bool:
    folder, name = remote.path[: remote.path.rfind("/") + 1], remote.path.rpartition("/")[2]
    if folder not in folders or remote.size > MAX_SMALL_FILE or ".index." in name:
        return False
    if not folder and not is_single_folder:
        return name in (MODEL_INDEX, MODEL_CARD) or name.upper().startswith("LICENSE")
    return name == MODEL_CARD or name.upper().startswith("LICENSE") or name.endswith((".json", ".txt"))


def _weights_by_variant(listing: RepoListing, folder: str) -> dict[str | None, list[str]]:
    """The safetensors of each variant in a folder: the whole file, or else the shards and their index."""
    whole: dict[str | None, list[str]] = {}
    shards: dict[str | None, list[str]] = {}
    for path in _files_in(listing.files, folder):
        name = path[len(folder) :]
        match, index = WEIGHT_FILE.fullmatch(name), SHARD_INDEX.fullmatch(name)
        if match is not None and match[2] is None:
            whole.setdefault(match[1], []).append(path)
        elif match is not None or index is not None:
            shards.setdefault((match or index or [None] * 2)[1], []).append(path)
    return shards | whole


def _check_variant(
    listing: RepoListing, weights: Mapping[str, dict[str | None, list[str]]], variant: str | None
) -> None:
    known = sorted({name for variants in weights.values() for name in variants if name not in (None, "non_ema")})
    if variant is not None and variant not in known:
        available = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(
            f"{listing.repository}: no variant {variant!r} in safetensors; {available}, or leave out --variant"
        )


def _fallback_weights(
    listing: RepoListing, folder: str, variants: Mapping[str | None, list[str]], index: Json | None
) -> list[str]:
    """For a folder without plain weights: nothing if it needs none, the one file if the repository is one file."""
    paths = _files_in(listing.files, folder)
    tensors = [path for path in paths if path.endswith(".safetensors")]
    if index is None and len(tensors) == 1:
        return tensors
    available = ", ".join(sorted(str(name) for name in variants if name is not None))
    if available:
        raise Unsupported(f"{listing.repository}: {folder} has safetensors of {available} alone; add --variant")
    others = [path for path in paths if path.endswith(OTHER_WEIGHTS)]
    if index is None and tensors:
        raise Unsupported(
            f"{listing.repository}: not in diffusers' layout, but single files: {', '.join(tensors)}; "
            "fetch the one you want yourself and give its path"
        )
    if others or index is None:
        other_names = ", ".join(path.rpartition("/")[2] for path in others[:3]) or "no weights"
        raise Unsupported(
            f"{listing.repository}: {folder or 'the repository'} holds {other_names}, but no safetensors; "
            "only safetensors are pulled: look for a repository or a --revision that has them"
        )
    return []
