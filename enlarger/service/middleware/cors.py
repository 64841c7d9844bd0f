"""Where a request may come to and come from: names in Host, and the web pages that a browser speaks for.

A page of any site can make a browser send a form to 127.0.0.1, and a name of its own resolve to 127.0.0.1. Browsers say
so in Host, Origin and Sec-Fetch-Site, which pages cannot change; programs that are not browsers send none of the latter
two.
"""

import re
from dataclasses import dataclass

from enlarger.errors import InputError
from enlarger.service.middleware.asgi import RequestHead
from enlarger.service.problems import problem_error
from enlarger.service.settings import Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
RESULT_PATH = re.compile(r"/v1/images/[A-Za-z0-9_-]{22}/content")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Prefer, Idempotency-Key, X-API-Key, *",
    "Access-Control-Max-Age": "600",
    "Content-Length": "0",
}
EXPOSED_HEADERS = "Content-Disposition, ETag, Location, Preference-Applied, Retry-After, X-Request-Id, X-Should-Retry"


@dataclass(frozen=True)
class AllowedOrigins:
    """The web pages that may use the service: its own, and those of the settings."""

    origins: frozenset[str]

    @classmethod
    def from_settings(cls, settings: Settings) -> "AllowedOrigins":
        if "*" in settings.origins or "null" in settings.origins:
            raise InputError("origins has '*' or 'null', which stand for every page; name the origins one by one")
        return cls(frozenset(normalize_origin(origin) for origin in settings.origins))

    def check(self, head: RequestHead) -> None:
        """Refuses with 403 what a foreign page makes a browser send."""
        origins = head.getlist("origin")
        if head.method in SAFE_METHODS:
            self._check_safe_method(head, origins)
        elif len(origins) > 1 or not all(self._is_allowed(origin, head) for origin in origins):
            raise _origin_problem(f"the origin {', '.join(origins)}")
        elif not origins and _fetch_site(head) in ("cross-site", "same-site"):
            raise _origin_problem("another site")

    def _check_safe_method(self, head: RequestHead, origins: tuple[str, ...]) -> None:
        is_cross_site = head.path.startswith(("/v1/", "/sdapi/")) and _fetch_site(head) == "cross-site"
        is_allowed = len(origins) == 1 and normalize_origin(origins[0]) in self.origins
        is_shown = _is_result_navigation(head) or (bool(self.origins) and _is_result_image(head))
        if is_cross_site and not is_allowed and not is_shown:
            raise _origin_problem("another site")

    def _is_allowed(self, origin: str, head: RequestHead) -> bool:
        name = normalize_origin(origin)
        return name in self.origins or name == normalize_origin(f"{head.scheme}://{(head.get('host') or '').strip()}")

    def response_headers(self, head: RequestHead) -> dict[str, str]:
        """The headers with which a browser lets an allowed page read the answer, and show a result as an image; none
        where there are no such pages."""
        if not self.origins:
            return {}
        origins = head.getlist("origin")
        shared = {"Vary": "Origin"}
        if RESULT_PATH.fullmatch(head.path):
            shared |= {"Cross-Origin-Resource-Policy": "cross-origin"}
        if len(origins) != 1 or normalize_origin(origins[0]) not in self.origins:
            return shared
        return {
            **shared,
            "Access-Control-Allow-Origin": origins[0],
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
        }


def is_preflight(head: RequestHead) -> bool:
    """Whether it is a CORS preflight: a browser inquires what a page may send."""
    return (
        head.method == "OPTIONS"
        and bool(head.getlist("origin"))
        and bool(head.getlist("access-control-request-method"))
    )


def check_preflight(head: RequestHead, origins: AllowedOrigins) -> None:
    """Refuses a preflight for an unknown page with 403."""
    if "Access-Control-Allow-Origin" not in origins.response_headers(head):
        raise _origin_problem(f"the origin {', '.join(head.getlist('origin'))}")


def normalize_origin(origin: str) -> str:
    """An origin in one form: small letters, and without the port that its scheme implies."""
    text = origin.strip().lower().rstrip("/")
    return text.removesuffix(_DEFAULT_PORTS.get(text.partition("://")[0], "\n"))


def _fetch_site(head: RequestHead) -> str:
    return (head.get("sec-fetch-site") or "").strip().lower()


def _is_result_navigation(head: RequestHead) -> bool:
    """A link to a result, opened in a tab of its own: the page with the link sees nothing of it."""
    is_navigation = (head.get("sec-fetch-mode"), head.get("sec-fetch-dest")) == ("navigate", "document")
    return is_navigation and RESULT_PATH.fullmatch(head.path) is not None


def _is_result_image(head: RequestHead) -> bool:
    """A result in an `<img>`: browsers do not say of which page, but whoever knows its address may have it."""
    return head.get("sec-fetch-dest") == "image" and RESULT_PATH.fullmatch(head.path) is not None


def _origin_problem(who: str) -> Exception:
    message = f"the request was sent by a web page of {who[:200]}, which may not; add it to origins to allow it"
    return problem_error(403, "origin_not_allowed", message)
