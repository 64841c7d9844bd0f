"""Keys: made once, kept only as hashes, and compared in constant time."""

import base64
import hmac
import secrets
from collections.abc import Sequence
from hashlib import sha256

from enlarger.service.middleware.asgi import RequestHead
from enlarger.service.problems import problem_error

KEY_PREFIX = "enl_"
OWNER_DIGITS = 16  # hexadecimal digits of a key's hash that name its owner


def generate_key() -> tuple[str, str]:
    """A key with 256 random bits, and the hash of it that goes into the settings."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """What the settings keep of a key."""
    return "sha256:" + sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def find_owner(key: str, hashes: Sequence[str]) -> str | None:
    """Who a key belongs to; None if it is none of ours. Every hash is compared, whichever fits."""
    owner, key_hash = None, hash_key(key)
    for known_hash in hashes:
        if hmac.compare_digest(key_hash, known_hash):
            owner = owner_of_hash(key_hash)
    return owner


def owner_of_hash(key_hash: str) -> str:
    """What stands for whoever has a key, in jobs and in the log."""
    return key_hash.removeprefix("sha256:")[:OWNER_DIGITS]


def keys_from_headers(head: RequestHead) -> list[str]:
    """The keys that a request brings: `Authorization: Bearer ...` and `X-API-Key`, each any number of times; to
    AUTOMATIC1111's API also as the password of `Authorization: Basic ...`, which its clients send."""
    authorizations = [value.strip().partition(" ") for value in head.getlist("authorization")]
    keys = [key.strip() for scheme, _, key in authorizations if scheme.lower() == "bearer"]
    if head.path.startswith("/sdapi/"):
        keys += [_password(value) for scheme, _, value in authorizations if scheme.lower() == "basic"]
    return [key for key in [*keys, *(value.strip() for value in head.getlist("x-api-key"))] if key]


def _password(credentials: str) -> str:
    """The password of RFC 7617's credentials; "" where they are none."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def authenticate(head: RequestHead, hashes: Sequence[str]) -> str:
    """Who sends a request, "" where the service has no keys. Raises ProblemError 401 without a key that is known."""
    if not hashes:
        return ""
    keys = keys_from_headers(head)
    owners = [owner for key in keys if (owner := find_owner(key, hashes)) is not None]
    if owners:
        return owners[0]
    if keys:
        raise problem_error(
            401, "invalid_api_key", "the key is none of this service's; check it, or ask who runs the service"
        )
    instruction = "send Authorization: Bearer KEY or X-API-Key: KEY"
    raise problem_error(401, "invalid_api_key", f"this needs a key and the request has none; {instruction}")
