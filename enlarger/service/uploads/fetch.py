"""Pictures named by a URL: data URLs, and, where it is switched on, files of public hosts."""

import asyncio
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from enlarger import __version__
from enlarger.image.decode import one_line
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.settings import Settings

TIMEOUT_SECONDS = 10.0  # for everything: looking the name up, connecting, redirects, the body
MAX_REDIRECTS = 3
MAX_CONCURRENT = 8  # fetches; others wait, within their time
CHUNK_SIZE = 1 << 16
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
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9-]+=[^;,]*)*;base64,", re.IGNORECASE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]


class DiskWriteError(Exception):
    """What was fetched cannot be kept: a fault of our disk, not of the URL."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _disk_errors() -> Generator[None]:
    """Tell faults of the disk from those of the network, which have the same types."""
    try:
        yield
    except OSError as error:
        raise DiskWriteError(error) from error


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


@dataclass
class AbortableSocket:
    """The connection of a fetch, so that another thread can cut it."""

    deadline: float
    sock: socket.socket | None = None
    is_aborted: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attach(self, sock: socket.socket) -> None:
        """Make a socket the one to be cut. Raises TimeoutError if that has happened before."""
        with self.lock:
            self.sock = sock
            if self.is_aborted:
                sock.close()
                raise TimeoutError

    def abort(self) -> None:
        """End whatever the fetch waits for."""
        with self.lock:
            self.is_aborted = True
            if self.sock is not None:
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)

    def remaining_seconds(self) -> float:
        """Seconds that remain. Raises TimeoutError when there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0 or self.is_aborted:
            raise TimeoutError
        return seconds


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
        """Write what a URL names to a file. Raises Refused; OSError if the file cannot be written."""
        if not self._is_enabled:
            text = f"{param}: this server fetches no URLs; send the picture as a file or as a data URL"
            raise problem_error(
                400, "invalid_image_url", f"{text}, or have `fetch = true` put into its settings", param
            )
        target = parse_target(url, param)
        abortable = AbortableSocket(time.monotonic() + self._seconds)
        try:
            async with asyncio.timeout(self._seconds), self._semaphore:
                await _run_in_daemon_thread(lambda: self._follow_redirects(target, url, out, abortable, param))
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            text = f"{param}: {target.host} {_failure_reason(error, self._seconds)}; send the picture itself"
            raise problem_error(400, "failed_to_download_image", text, param) from None
        except DiskWriteError as error:
            raise error.error from None
        finally:
            abortable.abort()

    def _follow_redirects(
        self, target: FetchTarget, url: str, out: Path, abortable: AbortableSocket, param: str
    ) -> None:
        for _ in range(MAX_REDIRECTS + 1):
            location = self._get(target, out, abortable, param)
            if location is None:
                return
            url = urljoin(url, location)
            target = parse_target(url, param)
        text = f"{param}: {target.host}: more than {MAX_REDIRECTS} redirects; name the last address"
        raise problem_error(400, "failed_to_download_image", text, param)

    def _get(self, target: FetchTarget, out: Path, abortable: AbortableSocket, param: str) -> str | None:
        """Write the answer to a file, or give the address that it redirects to."""
        sock = self._connect(target, abortable, param)
        with sock, closing(http.client.HTTPConnection(target.host, target.port)) as connection:
            connection.sock = sock
            connection.auto_open = 0  # it would look the name up again
            connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            for name, value in _request_headers(target).items():
                connection.putheader(name, value)
            connection.endheaders()
            with connection.getresponse() as response:
                return self._handle_response(response, target, out, abortable, param)

    def _handle_response(
        self, response: http.client.HTTPResponse, target: FetchTarget, out: Path, abortable: AbortableSocket, param: str
    ) -> str | None:
        if response.status in REDIRECT_STATUSES and response.headers.get("Location"):
            return response.headers["Location"]
        if response.status != 200:
            text = f"{param}: {target.host} answered {response.status}, expected 200; send the picture itself"
            raise problem_error(400, "failed_to_download_image", text, param)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise http.client.HTTPException("compressed, though not asked for")
        self._save(response, out, abortable, param)
        return None

    def _connect(self, target: FetchTarget, abortable: AbortableSocket, param: str) -> socket.socket:
        """A connection to one of the addresses that were checked. Raises Refused, OSError."""
        addresses = self._checked_addresses(target, param)
        for index, address in enumerate(addresses):
            try:
                sock = socket.create_connection((address, target.port), timeout=abortable.remaining_seconds())
                break
            except OSError:
                if index == len(addresses) - 1:
                    raise
        else:
            raise OSError("no address")
        abortable.attach(sock)
        if target.scheme == "http":
            return sock
        sock.settimeout(abortable.remaining_seconds())
        sock = _ssl_context().wrap_socket(sock, server_hostname=target.host)
        abortable.attach(sock)
        return sock

    def _checked_addresses(self, target: FetchTarget, param: str) -> list[str]:
        addresses = [ipaddress.ip_address(text) for text in self._resolve(target.host, target.port)]
        for address in addresses:
            is_allowed_private = any(_unmap_ipv4(address) in network for network in self._allowed_networks)
            if not is_allowed_private and not is_public(address):
                text = f"{param}: the URL leads to an address that is not public; send the picture as a file"
                raise problem_error(400, "invalid_image_url", text, param)
            if not is_allowed_private and target.port not in DEFAULT_PORTS.values():
                text = f"{param}: the URL names port {target.port}, expected 80 or 443; send the picture as a file"
                raise problem_error(400, "invalid_image_url", text, param)
        return [str(address) for address in addresses]

    def _save(self, response: http.client.HTTPResponse, out: Path, abortable: AbortableSocket, param: str) -> None:
        content_length = response.headers.get("Content-Length", "")
        if content_length.isdecimal() and int(content_length) > self._max_bytes:
            raise _too_large(param, self._max_bytes)
        temp_path = out.with_name(f".{uuid.uuid4().hex}.part")
        try:
            size = self._write_body(response, temp_path, abortable, param)
            if content_length.isdecimal() and size != int(content_length):
                raise http.client.IncompleteRead(b"")
            abortable.remaining_seconds()  # a connection that was cut looks like one that ended
            with _disk_errors():
                temp_path.replace(out)
        finally:
            temp_path.unlink(missing_ok=True)

    def _write_body(
        self, response: http.client.HTTPResponse, temp_path: Path, abortable: AbortableSocket, param: str
    ) -> int:
        size = 0
        with _disk_errors():
            stream = temp_path.open("xb")
        with stream:
            while chunk := response.read1(CHUNK_SIZE):
                abortable.remaining_seconds()
                size += len(chunk)
                if size > self._max_bytes:
                    raise _too_large(param, self._max_bytes)
                with _disk_errors():
                    stream.write(chunk)
                    stream.flush()
        return size


def parse_target(url: str, param: str) -> FetchTarget:
    """A URL taken apart. Raises Refused for whatever two readers might read in two ways."""
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


def write_data_url(url: str, out: Path, max_bytes: int, param: str = "image") -> None:
    """Write the bytes of a `data:image/...;base64,...` URL to a file. Raises Refused.

    The media type it states is not relied on: what the bytes are is found when they are decoded.
    """
    prefix = _DATA_URL.match(url)
    if prefix is None:
        text = (
            f"{param}: expected a data URL that begins with data:image/ and holds base64, as data:image/png;base64,..."
        )
        raise problem_error(400, "invalid_image_url", text, param)
    base64_text = url[prefix.end() :]
    if len(base64_text) // 4 * 3 > max_bytes + 2:
        raise _too_large(param, max_bytes)
    try:
        data = binascii.a2b_base64(base64_text.encode("ascii"), strict_mode=True)
        if len(base64_text) % 4 or len(data) != len(base64_text) // 4 * 3 - base64_text[-2:].count("="):
            raise ValueError("Excess padding")
    except ValueError as error:
        text = f"{param}: the data URL is not base64 ({one_line(error)}); encode the file's bytes again"
        raise problem_error(400, "invalid_base64_image", text, param) from None
    if not data:
        raise problem_error(400, "empty_image_file", f"{param}: the data URL is empty; send the picture's bytes", param)
    if len(data) > max_bytes:
        raise _too_large(param, max_bytes)
    out.write_bytes(data)


def _too_large(param: str, max_bytes: int) -> ProblemError:
    text = f"{param}: is more than {max_bytes:,} bytes; shrink the picture or compress it better"
    return problem_error(400, "image_file_too_large", text, param)


def _request_headers(target: FetchTarget) -> dict[str, str]:
    return {
        "Host": target.authority,
        "User-Agent": f"enlarger/{__version__}",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


def _failure_reason(error: BaseException, seconds: float) -> str:
    """A few words that say no more of what is behind a name than its owner would."""
    if isinstance(error, TimeoutError):
        return f"did not give the picture within {seconds:g} seconds"
    if isinstance(error, socket.gaierror):
        return "cannot be looked up"
    if isinstance(error, ssl.SSLError):
        return "cannot be reached securely: its certificate or its TLS is not valid"
    if isinstance(error, http.client.HTTPException):
        return "did not answer with a picture"
    return "cannot be reached"


@cache
def _ssl_context() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _run_in_daemon_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread that the process does not wait for at its end: a name server may hang for long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        caught: BaseException | None = None
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - handed to the one who waits
            caught = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, caught)

    threading.Thread(target=run, daemon=True, name="fetch").start()
    await done
