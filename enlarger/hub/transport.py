"""Requests to servers: https only, redirects only to hosts that are allowed, and the token to nobody but the hub."""

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from urllib.parse import SplitResult, urljoin, urlsplit

from enlarger import __version__
from enlarger.errors import CheckpointError, InputError

Response = http.client.HTTPResponse
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
MAX_BODY_SIZE = 20_000_000  # bytes of an answer that is read at once


class TransientError(Exception):
    """A server that could not be reached or that went silent; another try may help."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after  # seconds that the server requests


@dataclass(frozen=True)
class HubClient:
    """How to reach one hub. `token` goes to its own address alone, never along with a redirect elsewhere."""

    endpoint: str
    allowed_hosts: tuple[str, ...]  # patterns of the hosts that the hub may redirect to, each with or without a port
    token: str | None = None
    timeout: float = 30.0  # seconds without a byte

    def __post_init__(self) -> None:
        if not _scheme_allowed(urlsplit(self.endpoint)):
            raise InputError(f"{self.endpoint}: expected an https address (http is for 127.0.0.1 only)")

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Response:
        """The answer to GET, whatever its status but for redirects, which are followed where that is allowed.

        Raises TransientError if there is none, CheckpointError for a redirect that is refused.
        """
        opener = _opener()
        for _ in range(MAX_REDIRECTS):
            response = self._request(opener, url, dict(headers or {}))
            if response.status not in REDIRECT_STATUSES:
                return response
            response.close()
            target = urljoin(url, response.headers.get("Location") or url)
            self._check_redirect(url, target)
            url = target
        raise CheckpointError(f"{_host(url)}: more than {MAX_REDIRECTS} redirects; try again later or use --mirror.")

    def read(self, url: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of a small answer. Raises CheckpointError if there is none."""
        try:
            with self.open(url) as response:
                body = response.read(MAX_BODY_SIZE + 1)
                status, headers = response.status, response.headers
        except TransientError as error:
            raise CheckpointError(f"{error}.") from error
        except (OSError, http.client.HTTPException) as error:
            raise CheckpointError(
                f"{_host(url)}: the connection broke ({describe_error(error)}); try again."
            ) from error
        if len(body) > MAX_BODY_SIZE:
            raise CheckpointError(f"{_host(url)}: an answer of more than {MAX_BODY_SIZE:,} bytes is refused.")
        return status, headers, body

    def _request(self, opener: urllib.request.OpenerDirector, url: str, headers: dict[str, str]) -> Response:
        headers |= {"User-Agent": f"enlarger/{__version__}", "Accept-Encoding": "identity"}
        if self.token is not None and _origin(url) == _origin(self.endpoint):
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            return opener.open(urllib.request.Request(url, headers=headers), timeout=self.timeout)
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(_unreachable(url, error)) from error

    def _check_redirect(self, url: str, target: str) -> None:
        if not _scheme_allowed(urlsplit(target)):
            raise CheckpointError(f"{_host(url)} redirects to {_redacted(target)}, which is not https: refused.")
        if _origin(target) in (_origin(url), _origin(self.endpoint)):
            return
        names = (_host(target), urlsplit(target).netloc.lower())
        if not any(fnmatch(name, pattern.lower()) for name in names for pattern in self.allowed_hosts):
            raise CheckpointError(
                f"{_host(url)} redirects to {_redacted(target)}, a host that is not on the list: refused. "
                "If you trust it, add it to hosts in hub.json in the cache folder."
            )


def _opener() -> urllib.request.OpenerDirector:
    """Proxies of the environment, http and https; nothing that follows redirects or raises for a status."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_ssl_context()),
    ):
        opener.add_handler(handler)
    return opener


@cache
def _ssl_context() -> ssl.SSLContext:
    """The system's certificates; certifi's where there are none, as with python.org's Python on macOS."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and find_spec("certifi") is not None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _scheme_allowed(parts: SplitResult) -> bool:
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and parts.hostname == "127.0.0.1")
    )


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname, port if port is not None else (443 if parts.scheme == "https" else 80)


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "?").lower()


def _redacted(url: str) -> str:
    """Scheme and host of an address: the rest may be a signature."""
    return f"{urlsplit(url).scheme}://{_host(url)}"


def _unreachable(url: str, error: Exception) -> str:
    """One line on why there is no connection, naming the proxy if one is set."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is not None and not urllib.request.proxy_bypass(parts.netloc):
        where = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        return (
            f"{_host(url)}: the proxy {where.hostname}:{where.port} does not let us through ({describe_error(error)}); "
            f"check {parts.scheme}_proxy, or add the host to no_proxy"
        )
    return f"{_host(url)}: {describe_error(error)}; check the network, or use --offline with what is in the cache"


def describe_error(error: BaseException) -> str:
    """A few words on what went wrong below us."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, socket.gaierror):
        return "the name cannot be looked up (no network, or no DNS)"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {reason.verify_message}"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused"
    if isinstance(reason, ConnectionError | http.client.HTTPException):
        return "the connection was cut"
    return (reason.strerror if isinstance(reason, OSError) else None) or str(reason) or type(error).__name__
