"""Keys: made once, kept only as hashes, and compared in a time that tells nothing."""

import hmac
import secrets
from collections.abc import Sequence
from hashlib import sha256

from enlarger.service.edge.asgi import Head
from enlarger.service.faults import refuse

PREFIX = "enl_"
OWNER = 16  # hexadecimal digits of a key's hash that name its owner


def new_key() -> tuple[str, str]:
    """A key with 256 random bits, and the hash of it that goes into the settings."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hash_of(key)


def hash_of(key: str) -> str:
    """What the settings keep of a key."""
    return "sha256:" + sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def owner_of_key(key: str, hashes: Sequence[str]) -> str | None:
    """Who a key belongs to; None if it is none of ours. Every hash is compared, whichever fits."""
    found, own = None, hash_of(key)
    for known in hashes:
        if hmac.compare_digest(own, known):
            found = own.removeprefix("sha256:")[:OWNER]
    return found


def keys_in(head: Head) -> list[str]:
    """The keys that a request brings: `Authorization: Bearer ...` and `X-API-Key`, each any number of times."""
    bearers = [value.strip().partition(" ") for value in head.all("authorization")]
    keys = [key.strip() for scheme, _, key in bearers if scheme.lower() == "bearer"]
    return [key for key in [*keys, *(value.strip() for value in head.all("x-api-key"))] if key]


def owner_of_head(head: Head, hashes: Sequence[str]) -> str:
    """Who sends a request, "" where the service has no keys. Refused 401 without a key that is known."""
    if not hashes:
        return ""
    given = keys_in(head)
    owners = [owner for key in given if (owner := owner_of_key(key, hashes)) is not None]
    if owners:
        return owners[0]
    if given:
        raise refuse(401, "invalid_api_key", "the key is none of this service's; check it, or ask who runs the service")
    wanted = "send Authorization: Bearer KEY or X-API-Key: KEY"
    raise refuse(401, "invalid_api_key", f"this needs a key and the request has none; {wanted}")
