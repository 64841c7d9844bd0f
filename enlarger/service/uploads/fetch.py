"""Pictures named by a URL, where that is switched on: files of public hosts."""

import asyncio
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit

import anyio.to_thread
import httpx2

from enlarger import __version__
from enlarger.image.atomic_write import atomic_write
from enlarger.image.decode import one_line
from enlarger.service.problems import problem_error
from enlarger.service.settings import Settings
from enlarger.service.uploads.data_url import image_too_large

TIMEOUT_SECONDS = 10.0  # for everything: looking the name up, connecting, redirects, the body
MAX_REDIRECTS = 3
MAX_CONCURRENT = 8  # fetches; others wait, within their time
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_URL_CHARS = "/%:@!$&()*+,;=~?"  # of a path and a query
GLOBAL_UNICAST_V6 = ipaddress.ip_network("2000::/3")  # all unicast that is in use
NON_PUBLIC_NETWORKS = tuple(  # what Python's is_global lets through, depending on its version
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_HOST_NAME = re.compile(
    r"(?=.{1,253}\.?\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label like this makes resolvers read the name as an address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class FetchTarget:
    """An address to fetch from, taken apart and found acceptable as text."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def resolve_host(host: str, port: int) -> Sequence[str]:
    """What the system's resolver says. Raises OSError."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


class UrlFetcher:
    """Fetches pictures from URLs, if the settings allow it.

    Each name is looked up once a hop, all its addresses must be public or in `fetch_networks`, and the connection goes
    to one of these very addresses; no proxy is used. Ports other than 80 and 443 are for `fetch_networks` alone.
    """

    def __init__(self, settings: Settings, resolve: Resolver = resolve_host, seconds: float = TIMEOUT_SECONDS) -> None:
        self._is_enabled = settings.fetch
        self._allowed_networks = tuple(ipaddress.ip_network(network) for network in settings.fetch_networks)
        self._max_bytes = settings.bounds.image
        self._resolve = resolve
        self._seconds = seconds
        self._semaphore = asyncio.Semaphore(MAX_CONCURRENT)

    async def fetch(self, url: str, out: Path, param: str = "image") -> None:
        """Write what a URL names to a file. Raises ProblemError; OSError if the file cannot be written."""
        if not self._is_enabled:
            text = f"{param}: this server fetches no URLs; send the picture as a file or as a data URL"
            raise problem_error(
                400, "invalid_image_url", f"{text}, or have `fetch = true` put into its settings", param
            )
        target = parse_target(url, param)
        try:
            async with asyncio.timeout(self._seconds), self._semaphore:
                await self._follow_redirects(target, url, out, param)
        except (TimeoutError, httpx2.TransportError, httpx2.InvalidURL) as error:
            text = f"{param}: {target.host} {_failure_reason(error, self._seconds)}; send the picture itself"
            raise problem_error(400, "failed_to_download_image", text, param) from None

    async def _follow_redirects(self, target: FetchTarget, url: str, out: Path, param: str) -> None:
        for _ in range(MAX_REDIRECTS + 1):
            async with self._get(target, param) as response:
                location = response.headers.get("Location")
                if response.status_code not in REDIRECT_STATUSES or not location:
                    await self._save(response, target, out, param)
                    return
            url = urljoin(url, location)
            target = parse_target(url, param)
        text = f"{param}: {target.host}: more than {MAX_REDIRECTS} redirects; name the last address"
        raise problem_error(400, "failed_to_download_image", text, param)

    @asynccontextmanager
    async def _get(self, target: FetchTarget, param: str) -> AsyncGenerator[httpx2.Response]:
        """The answer of one of the addresses that were checked: the name is not looked up again."""
        addresses = await self._checked_addresses(target, param)
        async with httpx2.AsyncClient(verify=_ssl_context(), trust_env=False, timeout=None) as http:
            for index, address in enumerate(addresses):
                url = httpx2.URL(scheme=target.scheme, host=address, port=target.port, raw_path=target.path.encode())
                request = http.build_request(
                    "GET", url, headers=_request_headers(target), extensions={"sni_hostname": target.host}
                )
                try:
                    response = await http.send(request, stream=True)
                    break
                except httpx2.ConnectError:
                    if index == len(addresses) - 1:
                        raise
            else:
                raise httpx2.ConnectError("no address")
            try:
                yield response
            finally:
                await response.aclose()

    async def _checked_addresses(self, target: FetchTarget, param: str) -> list[str]:
        try:
            found = await _run_in_daemon_thread(lambda: self._resolve(target.host, target.port))
        except OSError as error:
            raise httpx2.ConnectError("no address") from error
        addresses = [ipaddress.ip_address(text) for text in found]
        for address in addresses:
            is_allowed_private = any(_unmap_ipv4(address) in network for network in self._allowed_networks)
            if not is_allowed_private and not is_public(address):
                text = f"{param}: the URL leads to an address that is not public; send the picture as a file"
                raise problem_error(400, "invalid_image_url", text, param)
            if not is_allowed_private and target.port not in DEFAULT_PORTS.values():
                text = f"{param}: the URL names port {target.port}, expected 80 or 443; send the picture as a file"
                raise problem_error(400, "invalid_image_url", text, param)
        return [str(address) for address in addresses]

    async def _save(self, response: httpx2.Response, target: FetchTarget, out: Path, param: str) -> None:
        if response.status_code != 200:
            text = f"{param}: {target.host} answered {response.status_code}, expected 200; send the picture itself"
            raise problem_error(400, "failed_to_download_image", text, param)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise httpx2.RemoteProtocolError("compressed, though not asked for")
        content_length = response.headers.get("Content-Length", "")
        if content_length.isdecimal() and int(content_length) > self._max_bytes:
            raise image_too_large(param, self._max_bytes)
        size = 0
        with atomic_write(out, durable=False) as stream:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > self._max_bytes:
                    raise image_too_large(param, self._max_bytes)
                await anyio.to_thread.run_sync(stream.write, chunk)


def parse_target(url: str, param: str) -> FetchTarget:
    """A URL taken apart. Raises ProblemError for whatever two readers might read in two ways."""
    try:
        return _parse_target(url)
    except ValueError as error:
        text = f"{param}: the URL {error}, expected http:// or https:// and a public host; send the picture as a file"
        raise problem_error(400, "invalid_image_url", text, param) from None


def _parse_target(url: str) -> FetchTarget:
    if re.search(r"[\s\\\x00-\x20\x7f]", url):
        raise ValueError("has spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").lower()
    except ValueError:
        raise ValueError("cannot be read") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError(f"is of the kind {one_line(parts.scheme[:20])!r}")
    if "@" in parts.netloc:
        raise ValueError("has a user name or password")
    if port == 0 or not _is_valid_host(host):
        raise ValueError("names no host that can be asked")
    query = f"?{quote(parts.query, safe=SAFE_URL_CHARS)}" if parts.query else ""
    path = quote(parts.path or "/", safe=SAFE_URL_CHARS) + query
    return FetchTarget(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def _is_valid_host(host: str) -> bool:
    """Whether a text is an address in its usual form, or a name that no resolver takes for an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        last_label = host.rstrip(".").rpartition(".")[2]
        return _HOST_NAME.fullmatch(host) is not None and _NUMERIC_LABEL.fullmatch(last_label) is None
    return "%" not in host  # the network interface of a local address


def _unmap_ipv4(address: Address) -> Address:
    """The IPv4 address inside of an IPv6 one that stands for it on the same machine."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet: no private, local, shared, multicast or tunnelled one."""
    address = _unmap_ipv4(address)
    if not address.is_global or address.is_multicast or any(address in network for network in NON_PUBLIC_NETWORKS):
        return False
    return address.version == 4 or address in GLOBAL_UNICAST_V6


def _request_headers(target: FetchTarget) -> dict[str, str]:
    return {
        "Host": target.authority,
        "User-Agent": f"enlarger/{__version__}",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


def _failure_reason(error: Exception, seconds: float) -> str:
    """A few words that say no more of what is behind a name than its owner would."""
    below = error.__cause__
    reasons = (below, *below.args[:1]) if below is not None else ()  # httpx2 holds httpcore2's error, that the socket's
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return f"did not give the picture within {seconds:g} seconds"
    if any(isinstance(reason, socket.gaierror) for reason in reasons):
        return "cannot be looked up"
    if any(isinstance(reason, ssl.SSLError) for reason in reasons):
        return "cannot be reached securely: its certificate or its TLS is not valid"
    if isinstance(error, httpx2.ProtocolError):
        return "did not answer with a picture"
    return "cannot be reached"


@cache
def _ssl_context() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _run_in_daemon_thread(function: Callable[[], Kind]) -> Kind:
    """Run a function in a thread that the process does not wait for at its end: a name server may hang for long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Kind] = loop.create_future()

    def finish(set_outcome: Callable[[], None]) -> None:
        if not done.done():
            set_outcome()

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - handed to the one who waits
            set_outcome = partial(done.set_exception, error)
        else:
            set_outcome = partial(done.set_result, result)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, set_outcome)

    threading.Thread(target=run, daemon=True, name="fetch").start()
    return await done
