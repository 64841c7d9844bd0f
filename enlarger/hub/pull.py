"""Pulling a checkpoint: what is missing of it is fetched once, whoever asks at the same time."""

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from enlarger.errors import CheckpointError, InputError
from enlarger.hub import cache
from enlarger.hub.cache import Copy
from enlarger.hub.fetch import Patience, Wanted, fetch, size_of
from enlarger.hub.licence import Licence, accept, accepted, read_licence
from enlarger.hub.listing import CARD, INDEX, Listing, file_url, hub_client, read_listing, select
from enlarger.hub.names import Source, read_book
from enlarger.hub.transport import Client

SPARE = 64_000_000  # bytes of the disk that stay free
TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Order:
    """What to pull: an alias or owner/repository, and how."""

    name: str
    variant: str | None = None
    revision: str | None = None  # None is the alias's own, or main
    to: Path | None = None  # a folder of one's own instead of the cache
    mirror: str | None = None  # the address of another hub
    offline: bool = False
    repair: bool = False  # read again what was pulled, and fetch what is broken of it


@dataclass(frozen=True)
class Pulled:
    """A model that is there now."""

    folder: Path
    repository: str
    revision: str
    files: int
    fetched: int  # bytes that were missing
    seconds: float


class Teller(Protocol):
    """Who hears how it goes."""

    def say(self, text: str) -> None:
        """A line."""
        ...

    def total(self, size: int) -> None:
        """So many bytes are missing."""
        ...

    def file(self, path: str, size: int) -> Callable[[int], None]:
        """A file begins; what is returned hears how many bytes of it are there."""
        ...


Ask = Callable[[str, Licence], bool]  # repository and licence -> whether the user accepts it


def pull(order: Order, ask: Ask, teller: Teller, patience: Patience | None = None) -> Pulled:
    """Make the model of an order be there, whole. Raises InputError for the order, CheckpointError for all else."""
    began = time.monotonic()
    book = read_book(cache.home())
    source = book.find(order.name)
    _check(order, source)
    revision = source.revision if order.revision is None else order.revision
    copy = _ready(order, source, revision)
    if copy is not None:
        return _pulled(copy, 0, began)
    if order.offline or _is_offline():
        raise CheckpointError(
            f"{order.name}: not in the cache ({cache.home()}), and offline nothing is fetched; run it once without."
        )
    _need_hub()
    client = hub_client(book, order.mirror, os.environ.get("HF_ENDPOINT"))
    listing = read_listing(client, book, source, revision)
    models = cache.model_folder(listing.repository)
    folder = models / listing.revision if order.to is None else order.to.expanduser().absolute()
    parts = (models if order.to is None else folder) / cache.PARTS
    with _alone(models if order.to is None else folder, teller):
        copy, fetched = _fill(order, source, listing, client, folder, parts, ask, teller, patience or Patience())
        cache.save_ref(listing.repository, revision, listing.revision)
    return _pulled(copy, fetched, began)


def _check(order: Order, source: Source) -> None:
    if order.repair and (order.offline or _is_offline()):
        raise InputError("a repair fetches what is broken; leave out --offline, or only look: enlarger doctor --verify")
    alias = source.alias
    if order.variant is not None and alias is not None and order.revision is None:
        known = ", ".join(alias.variants) or "none"
        if order.variant not in alias.variants:
            raise InputError(f"{order.name}: no variant {order.variant!r} is known; it has {known}, or leave it out")
    if order.revision is not None and (not order.revision or ".." in order.revision):
        raise InputError(f"--revision {order.revision!r}: expected a commit, a branch or a tag")


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE


def _ready(order: Order, source: Source, revision: str) -> Copy | None:
    """The copy, where that is certain without asking: offline the last one, else only that of a commit."""
    offline = order.offline or _is_offline()
    if order.repair or not (offline or cache.is_commit(revision)):
        return None
    copy = cache.find_copy(source, revision) if order.to is None else cache.read_copy(order.to.expanduser().absolute())
    if copy is None or copy.missing() or copy.repository not in source.repositories:
        return None
    if cache.is_commit(revision) and copy.revision != revision:
        return None
    return copy if _has_variant(copy, order.variant) else None


def _has_variant(copy: Copy, variant: str | None) -> bool:
    matches = [cache.WEIGHTS.fullmatch(path.rpartition("/")[2]) for path in copy.files]
    found = {match[1] for match in matches if match is not None}
    return variant in found or not found


def _need_hub() -> None:
    for package in ("huggingface_hub", "filelock"):
        if find_spec(package) is None:
            raise CheckpointError(f"pulling needs {package}; install it with: pip install 'enlarger[hub]'")


@contextmanager
def _alone(folder: Path, teller: Teller) -> Generator[None]:
    """Hold the folder's lock: of several processes one fetches, and the others find it done."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            teller.say("another process is fetching this model; waiting for it")
            lock.acquire()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    try:
        yield
    finally:
        lock.release()


def _fill(
    order: Order, source: Source, listing: Listing, client: Client, folder: Path, parts: Path,
    ask: Ask, teller: Teller, patience: Patience,
) -> tuple[Copy, int]:  # fmt: skip
    """Fetch what is missing in the folder; the copy and the bytes fetched."""
    old = cache.read_copy(folder)
    if old is not None and (old.repository, old.revision) != (listing.repository, listing.revision):
        raise InputError(f"{folder} holds {old.repository} at {old.revision}; choose another folder")
    wanted = {path: _known(item, old) for path, item in _wanted(order, source, listing, client, old).items()}
    _get_consent(listing, client, ask)
    files = {**({} if old is None else old.files), **wanted}
    copy = Copy(folder, listing.repository, listing.revision, client.endpoint, files)
    broken = set(copy.broken() if order.repair else copy.missing())
    todo = [item for path, item in wanted.items() if path in broken]
    if not todo and copy == old:
        return copy, 0
    _check_space(todo, folder, parts)
    copy.save()  # before the first file: whoever finds the folder knows what belongs into it
    teller.total(sum(item.size for item in todo))
    fetched = 0
    for item in todo:
        before = size_of(parts / f"{item.key}.part")
        url, watch = file_url(client, listing, item.path), teller.file(item.path, item.size)
        sha256 = fetch(client, url, item, folder / item.path, parts, watch, patience)
        fetched += item.size - before
        copy = replace(copy, files={**copy.files, item.path: replace(item, sha256=sha256)})
    copy.save()
    shutil.rmtree(parts, ignore_errors=True)
    return copy, fetched


def _wanted(order: Order, source: Source, listing: Listing, client: Client, old: Copy | None) -> dict[str, Wanted]:
    """The files to have: what the model needs, or for a repair what was pulled before."""
    if order.repair:
        if old is None:
            raise InputError(f"{order.name}: nothing was pulled there, so there is nothing to repair")
        return {path: listing.files[path] for path in old.files if path in listing.files}
    index = _read_index(client, listing) if INDEX in listing.files else None
    wanted = {item.path: item for item in select(listing, index, order.variant)}
    known: Mapping[str, str] = {} if source.alias is None or order.revision is not None else source.alias.sha256
    for path, item in wanted.items():
        if item.sha256 is not None and known.get(path, item.sha256) != item.sha256:
            raise CheckpointError(
                f"{listing.repository}: {path} has sha256 {item.sha256[:12]}..., the published file {known[path][:12]}"
                f"...: not the same weights. To take them all the same: --revision {listing.revision}"
            )
    return wanted


def _known(item: Wanted, old: Copy | None) -> Wanted:
    """The entry of the record, which has a sha256 of small files too, where it is of the same content."""
    recorded = None if old is None else old.files.get(item.path)
    same = recorded is not None and (recorded.size, recorded.git) == (item.size, item.git)
    return recorded if recorded is not None and same and item.sha256 in (None, recorded.sha256) else item


def _read_text(client: Client, listing: Listing, path: str) -> bytes:
    status, _, body = client.read(file_url(client, listing, path))
    if status != 200:
        raise CheckpointError(f"{listing.repository}: {path} cannot be fetched ({status}); try again or use --mirror.")
    return body


def _read_index(client: Client, listing: Listing) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(client, listing, INDEX))
        return {str(key): value for key, value in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{listing.repository}: {INDEX} is no JSON object ({error}).") from error


def _get_consent(listing: Listing, client: Client, ask: Ask) -> None:
    """Ask about the licence, once for each licence of a model."""
    folder = cache.model_folder(listing.repository)
    card = _read_text(client, listing, CARD).decode(errors="replace") if CARD in listing.files else ""
    licence = read_licence(card)
    name = licence.name or "none stated"
    if accepted(folder, name):
        return
    if not ask(listing.repository, licence):
        raise InputError(f"{listing.repository}: licence {name} not accepted; nothing was fetched")
    folder.mkdir(parents=True, exist_ok=True)
    accept(folder, name, {"repository": listing.repository, "revision": listing.revision, "link": licence.link})


def _check_space(todo: list[Wanted], folder: Path, parts: Path) -> None:
    need = sum(item.size - size_of(parts / f"{item.key}.part") for item in todo)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if todo and need + SPARE > free:
        raise CheckpointError(
            f"{folder}: {need:,} bytes are to come, but {free:,} are free; make room, or give another place by "
            "ENLARGER_HOME or --to."
        )


def _pulled(copy: Copy, fetched: int, began: float) -> Pulled:
    return Pulled(copy.folder, copy.repository, copy.revision, len(copy.files), fetched, time.monotonic() - began)
