"""Pulling a checkpoint: what is missing of it is downloaded once, however many processes pull it at the same time."""

import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from enlarger.errors import CheckpointError, InputError
from enlarger.hub import cache
from enlarger.hub.aliases import RepoSource, is_commit, read_alias_table
from enlarger.hub.cache import LocalSnapshot
from enlarger.hub.fetch import RemoteFile, RetryPolicy, fetch, size_of
from enlarger.hub.licence import Licence, is_accepted, read_licence, record_acceptance
from enlarger.hub.listing import MODEL_CARD, MODEL_INDEX, RepoListing, file_url, hub_client, read_listing, select_files
from enlarger.hub.transport import HubClient
from enlarger.strict_json import Json, parse_json

RESERVED_DISK_BYTES = 64_000_000  # bytes of the disk that stay free
TRUE_VALUES = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class PullOptions:
    """What to pull: an alias or owner/repository, and how."""

    name: str
    variant: str | None = None
    revision: str | None = None  # None is the alias's own, or main
    to: Path | None = None  # a folder of one's own instead of the cache
    mirror: str | None = None  # the address of another hub
    offline: bool = False
    repair: bool = False  # read again what was pulled, and fetch what is broken of it


@dataclass(frozen=True)
class PullResult:
    """A model that is there now."""

    folder: Path
    repository: str
    revision: str
    files: int
    fetched: int  # bytes that were missing
    seconds: float


class ProgressListener(Protocol):
    """What a pull reports its progress to."""

    def message(self, text: str) -> None:
        """Show a line of text."""
        ...

    def set_total(self, size: int) -> None:
        """So many bytes are missing."""
        ...

    def start_file(self, path: str, size: int) -> Callable[[int], None]:
        """A file begins; what is returned is called with the bytes of it that are there."""
        ...


ConfirmLicence = Callable[[str, Licence], bool]  # repository and licence -> whether the user accepts it


def pull(
    options: PullOptions,
    confirm_licence: ConfirmLicence,
    listener: ProgressListener,
    retry_policy: RetryPolicy | None = None,
) -> PullResult:
    """Have a complete copy of a model on this disk. Raises InputError for the options, CheckpointError for all else."""
    started = time.monotonic()
    alias_table = read_alias_table(cache.cache_dir())
    source = alias_table.lookup(options.name)
    _check_options(options, source)
    revision = source.revision if options.revision is None else options.revision
    snapshot = _ready_snapshot(options, source, revision)
    if snapshot is not None:
        return _pull_result(snapshot, 0, started)
    if options.offline or _is_offline():
        raise CheckpointError(
            f"{options.name}: not in the cache ({cache.cache_dir()}), and offline nothing is fetched; run it once "
            "without."
        )
    _require_hub_packages()
    client = hub_client(alias_table, options.mirror, os.environ.get("HF_ENDPOINT"))
    listing = read_listing(client, alias_table, source, revision)
    repo_folder = cache.repo_folder(listing.repository)
    folder = repo_folder / listing.revision if options.to is None else options.to.expanduser().absolute()
    partial_dir = (repo_folder if options.to is None else folder) / cache.PARTIAL_DIR
    with _folder_lock(repo_folder if options.to is None else folder, listener):
        snapshot, fetched = _download_missing(
            options,
            source,
            listing,
            client,
            folder,
            partial_dir,
            confirm_licence,
            listener,
            retry_policy or RetryPolicy(),
        )
        cache.save_ref(listing.repository, revision, listing.revision)
    return _pull_result(snapshot, fetched, started)


def _check_options(options: PullOptions, source: RepoSource) -> None:
    if options.repair and (options.offline or _is_offline()):
        raise InputError("a repair fetches what is broken; leave out --offline, or only look: enlarger doctor --verify")
    alias = source.alias
    if options.variant is not None and alias is not None and options.revision is None:
        known = ", ".join(alias.variants) or "none"
        if options.variant not in alias.variants:
            raise InputError(
                f"{options.name}: no variant {options.variant!r} is known; it has {known}, or leave it out"
            )
    if options.revision is not None and (not options.revision or ".." in options.revision):
        raise InputError(f"--revision {options.revision!r}: expected a commit, a branch or a tag")


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE_VALUES


def _ready_snapshot(options: PullOptions, source: RepoSource, revision: str) -> LocalSnapshot | None:
    """The snapshot, where that is certain without a request: offline the last one, else only that of a commit."""
    offline = options.offline or _is_offline()
    if options.repair or not (offline or is_commit(revision)):
        return None
    snapshot = (
        cache.find_snapshot(source, revision)
        if options.to is None
        else cache.read_snapshot(options.to.expanduser().absolute())
    )
    if snapshot is None or snapshot.missing_files() or snapshot.repository not in source.repositories:
        return None
    if is_commit(revision) and snapshot.revision != revision:
        return None
    variants = cache.weight_variants(snapshot.files)
    return snapshot if options.variant in variants or not variants else None


def _require_hub_packages() -> None:
    for package in ("huggingface_hub", "filelock"):
        if find_spec(package) is None:
            raise CheckpointError(f"pulling needs {package}; install it with: pip install 'enlarger[hub]'")


@contextmanager
def _folder_lock(folder: Path, listener: ProgressListener) -> Generator[None]:
    """Hold the folder's lock: of several processes one fetches, and the others find it done."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            listener.message("another process is fetching this model; waiting for it")
            lock.acquire()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    try:
        yield
    finally:
        lock.release()


def _download_missing(
    options: PullOptions, source: RepoSource, listing: RepoListing, client: HubClient, folder: Path, partial_dir: Path,
    confirm_licence: ConfirmLicence, listener: ProgressListener, retry_policy: RetryPolicy,
) -> tuple[LocalSnapshot, int]:  # fmt: skip
    """Fetch what is missing in the folder; the snapshot and the bytes fetched."""
    previous = cache.read_snapshot(folder)
    if previous is not None and (previous.repository, previous.revision) != (listing.repository, listing.revision):
        raise InputError(f"{folder} holds {previous.repository} at {previous.revision}; choose another folder")
    requested = {
        path: _with_recorded_digest(item, previous)
        for path, item in _requested_files(options, source, listing, client, previous).items()
    }
    _require_licence(listing, client, confirm_licence)
    files = {**({} if previous is None else previous.files), **requested}
    snapshot = LocalSnapshot(folder, listing.repository, listing.revision, client.endpoint, files)
    damaged = set(snapshot.damaged_files() if options.repair else snapshot.missing_files())
    to_download = [item for path, item in requested.items() if path in damaged]
    if not to_download and snapshot == previous:
        return snapshot, 0
    _check_space(to_download, folder, partial_dir)
    snapshot.save()  # before the first file: whoever finds the folder knows what belongs into it
    listener.set_total(sum(item.size for item in to_download))
    fetched = 0
    for item in to_download:
        before = size_of(partial_dir / f"{item.content_key}.part")
        url, watch = file_url(client, listing, item.path), listener.start_file(item.path, item.size)
        sha256 = fetch(client, url, item, folder / item.path, partial_dir, watch, retry_policy)
        fetched += item.size - before
        snapshot = replace(snapshot, files={**snapshot.files, item.path: replace(item, sha256=sha256)})
    snapshot.save()
    shutil.rmtree(partial_dir, ignore_errors=True)
    return snapshot, fetched


def _requested_files(
    options: PullOptions, source: RepoSource, listing: RepoListing, client: HubClient, previous: LocalSnapshot | None
) -> dict[str, RemoteFile]:
    """The files to have: what the model needs, or, to repair it, what was pulled before."""
    if options.repair:
        if previous is None:
            raise InputError(f"{options.name}: nothing was pulled there, so there is nothing to repair")
        requested = {path: listing.files[path] for path in previous.files if path in listing.files}
    else:
        index = _read_index(client, listing) if MODEL_INDEX in listing.files else None
        requested = {item.path: item for item in select_files(listing, index, options.variant)}
    published = _published_digests(source, options.revision)
    is_published_commit = source.alias is not None and listing.revision == source.alias.revision
    advice = (
        "try another --mirror" if is_published_commit else f"to take them all the same: --revision {listing.revision}"
    )
    return {
        path: _with_published_digest(item, published, f"{listing.repository}: {path}", advice)
        for path, item in requested.items()
    }


def _published_digests(source: RepoSource, revision: str | None) -> Mapping[str, str]:
    """The sha256 that the package knows of weight files; none for another revision than the alias's."""
    if source.alias is None or revision not in (None, source.alias.revision):
        return {}
    return source.alias.sha256


def _with_published_digest(item: RemoteFile, published: Mapping[str, str], label: str, advice: str) -> RemoteFile:
    """The file with the sha256 that the package knows, which it must have, whatever the listing says of it."""
    digest = published.get(item.path)
    if digest is None:
        folder, variants = item.path.rpartition("/")[0], cache.weight_variants([item.path])
        for path in published:
            if path.rpartition("/")[0] == folder and variants & cache.weight_variants([path]):
                raise CheckpointError(f"{label} is listed in the place of {path}: not the same weights; {advice}")
        return item
    if item.sha256 not in (None, digest):
        raise CheckpointError(
            f"{label} has sha256 {item.sha256[:12]}..., the published file {digest[:12]}...: not the same weights; "
            f"{advice}"
        )
    return replace(item, sha256=digest)


def _with_recorded_digest(item: RemoteFile, previous: LocalSnapshot | None) -> RemoteFile:
    """The entry of the record, which has a sha256 of small files too, where it is of the same content."""
    recorded = None if previous is None else previous.files.get(item.path)
    is_same_content = recorded is not None and (recorded.size, recorded.git) == (item.size, item.git)
    return recorded if recorded is not None and is_same_content and item.sha256 in (None, recorded.sha256) else item


def _read_small_file(client: HubClient, listing: RepoListing, path: str) -> bytes:
    status, _, body = client.read(file_url(client, listing, path))
    if status != 200:
        raise CheckpointError(f"{listing.repository}: {path} cannot be fetched ({status}); try again or use --mirror.")
    return body


def _read_index(client: HubClient, listing: RepoListing) -> Json:
    try:
        index = parse_json(_read_small_file(client, listing, MODEL_INDEX))
        return {str(key): value for key, value in index.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{listing.repository}: {MODEL_INDEX} is no JSON object ({error}).") from error


def _require_licence(listing: RepoListing, client: HubClient, confirm_licence: ConfirmLicence) -> None:
    """Ask about the licence, once for each licence of a model."""
    folder = cache.repo_folder(listing.repository)
    card = _read_small_file(client, listing, MODEL_CARD).decode(errors="replace") if MODEL_CARD in listing.files else ""
    licence = read_licence(card)
    name = licence.name or "none stated"
    if is_accepted(folder, name):
        return
    if not confirm_licence(listing.repository, licence):
        raise InputError(f"{listing.repository}: licence {name} not accepted; nothing was fetched")
    folder.mkdir(parents=True, exist_ok=True)
    record_acceptance(
        folder, name, {"repository": listing.repository, "revision": listing.revision, "link": licence.link}
    )


def _check_space(to_download: list[RemoteFile], folder: Path, partial_dir: Path) -> None:
    needed = sum(item.size - size_of(partial_dir / f"{item.content_key}.part") for item in to_download)
    existing_parent = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing_parent).free
    if to_download and needed + RESERVED_DISK_BYTES > free:
        raise CheckpointError(
            f"{folder}: {needed:,} bytes are to come, but {free:,} are free; make room, or give another place by "
            "ENLARGER_HOME or --to."
        )


def _pull_result(snapshot: LocalSnapshot, fetched: int, started: float) -> PullResult:
    return PullResult(
        snapshot.folder,
        snapshot.repository,
        snapshot.revision,
        len(snapshot.files),
        fetched,
        time.monotonic() - started,
    )
