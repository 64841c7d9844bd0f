"""Where a request may come to and come from: names in Host, and the web pages that a browser speaks for.

A page of any site can make a browser send a form to 127.0.0.1, and a name of its own resolve to 127.0.0.1. Browsers say
so in Host, Origin and Sec-Fetch-Site, which pages cannot change; programs that are not browsers send none of the latter
two.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from enlarger.errors import InputError
from enlarger.service.edge.asgi import Head
from enlarger.service.faults import refuse
from enlarger.service.settings import LOOPBACK, Settings

SAFE = ("GET", "HEAD", "OPTIONS")
WILDCARDS = ("0.0.0.0", "::")
CONTENT = re.compile(r"/v1/images/[A-Za-z0-9_-]{22}/content")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_PORTS = {"http": ":80", "https": ":443"}

PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Prefer, Idempotency-Key, X-API-Key, *",
    "Access-Control-Max-Age": "600",
    "Content-Length": "0",
}
EXPOSED = "Content-Disposition, Idempotent-Replayed, Location, Preference-Applied, Retry-After, X-Request-Id"

Check = Callable[[Head], None]


def host_check(settings: Settings) -> Check:
    """Refuses with 403 what comes to a name that is not ours: rebound names above all."""
    anything = "*" in settings.hosts
    if anything and not settings.keys:
        raise InputError("hosts has '*', and there is no key; name the hosts, or make a key with `enlarger key`")
    allowed = {bracketed(name.lower()) for name in (*LOOPBACK, settings.host, *settings.hosts)}

    def check(head: Head) -> None:
        name, port = host_of(head)
        own = settings.host in WILDCARDS and name == bracketed(head.server)
        if not (anything or own or name in allowed or f"{name}:{port}" in allowed):
            raise refuse(403, "host_not_allowed", f"{name!r} is no name of this service; add it to hosts to allow it")

    return check


def host_of(head: Head) -> tuple[str, str]:
    """The name and the port in Host; Refused unless there is exactly one of it, in good form."""
    values = head.all("host")
    if len(values) != 1:
        raise refuse(403, "host_not_allowed", f"expected one Host header, found {len(values)}")
    match = _HOST.fullmatch(values[0].strip().lower())
    if match is None:
        raise refuse(403, "host_not_allowed", "the Host header is no name with an optional port")
    return match[1], match[2] or ""


def bracketed(name: str) -> str:
    """An address as it stands in a URL."""
    bare = name.count(":") > 1 and not name.startswith("[")
    return f"[{name}]" if bare else name


@dataclass(frozen=True)
class Origins:
    """The web pages that may use the service: its own, and those of the settings."""

    others: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> "Origins":
        if "*" in settings.origins or "null" in settings.origins:
            raise InputError("origins has '*' or 'null', which stand for every page; name the origins one by one")
        return cls(frozenset(plain(origin) for origin in settings.origins))

    def check(self, head: Head) -> None:
        """Refuses with 403 what a foreign page makes a browser send."""
        origins = head.all("origin")
        if head.method in SAFE:
            self._check_reading(head, origins)
        elif len(origins) > 1 or not all(self._known(origin, head) for origin in origins):
            raise _foreign(f"the origin {', '.join(origins)}")
        elif not origins and _site(head) in ("cross-site", "same-site"):
            raise _foreign("another site")

    def _check_reading(self, head: Head, origins: tuple[str, ...]) -> None:
        foreign = head.path.startswith("/v1/") and _site(head) == "cross-site"
        shared = len(origins) == 1 and plain(origins[0]) in self.others
        if foreign and not shared and not _opens_a_result(head):
            raise _foreign("another site")

    def _known(self, origin: str, head: Head) -> bool:
        name = plain(origin)
        return name in self.others or name == plain(f"{head.scheme}://{(head.first('host') or '').strip()}")

    def answers(self, head: Head) -> dict[str, str]:
        """What tells a browser that the page which asks may read the answer; nothing for others."""
        if not self.others:
            return {}
        origins = head.all("origin")
        if len(origins) != 1 or plain(origins[0]) not in self.others:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origins[0],
            "Access-Control-Expose-Headers": EXPOSED,
        }


def asks_leave(head: Head) -> bool:
    """Whether a browser asks beforehand what a page may send."""
    return head.method == "OPTIONS" and bool(head.all("origin")) and bool(head.all("access-control-request-method"))


def check_leave(head: Head, origins: Origins) -> None:
    """Refuses with 403 to let an unknown page ask."""
    if "Access-Control-Allow-Origin" not in origins.answers(head):
        raise _foreign(f"the origin {', '.join(head.all('origin'))}")


def plain(origin: str) -> str:
    """An origin in one form: small letters, and without the port that its scheme implies."""
    text = origin.strip().lower().rstrip("/")
    return text.removesuffix(_PORTS.get(text.partition("://")[0], "\n"))


def _site(head: Head) -> str:
    return (head.first("sec-fetch-site") or "").strip().lower()


def _opens_a_result(head: Head) -> bool:
    """A link to a result, opened in a tab of its own: the page with the link sees nothing of it."""
    opened = (head.first("sec-fetch-mode"), head.first("sec-fetch-dest")) == ("navigate", "document")
    return opened and CONTENT.fullmatch(head.path) is not None


def _foreign(who: str) -> Exception:
    message = f"the request was sent by a web page of {who[:200]}, which may not; add it to origins to allow it"
    return refuse(403, "origin_not_allowed", message)
