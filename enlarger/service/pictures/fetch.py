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
from enlarger.opening import one_line
from enlarger.service.faults import Refused, refuse
from enlarger.service.settings import Settings

SECONDS = 10.0  # for everything: looking the name up, connecting, redirects, the body
MOST_REDIRECTS = 3
AT_ONCE = 8  # fetches; others wait, within their time
PIECE = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}
UNQUOTED = "/%:@!$&()*+,;=~?"  # of a path and a query
PLAIN_V6 = ipaddress.ip_network("2000::/3")  # all unicast that is in use
NOT_PUBLIC = tuple(  # what Python's is_global lets through, depending on its version
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_NAME = re.compile(
    r"(?=.{1,253}\.?\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label like this makes resolvers read the name as an address
_DATA = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9-]+=[^;,]*)*;base64,", re.IGNORECASE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Sequence[str]]


class Unwritable(Exception):
    """What was fetched cannot be kept: a fault of our disk, not of the URL."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _disk() -> Generator[None]:
    """Tell faults of the disk from those of the network, which have the same types."""
    try:
        yield
    except OSError as error:
        raise Unwritable(error) from error


@dataclass(frozen=True)
class Target:
    """An address to fetch from, taken apart and found acceptable as text."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass
class Line:
    """The connection of a fetch, so that another thread can cut it."""

    until: float
    sock: socket.socket | None = None
    dead: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, sock: socket.socket) -> None:
        """Make a socket the one to be cut. Raises TimeoutError if that has happened before."""
        with self.lock:
            self.sock = sock
            if self.dead:
                sock.close()
                raise TimeoutError

    def cut(self) -> None:
        """End whatever the fetch waits for."""
        with self.lock:
            self.dead = True
            if self.sock is not None:
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)

    def left(self) -> float:
        """Seconds that remain. Raises TimeoutError when there are none."""
        seconds = self.until - time.monotonic()
        if seconds <= 0 or self.dead:
            raise TimeoutError
        return seconds


def system_addresses(host: str, port: int) -> Sequence[str]:
    """What the system's resolver says. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Fetches pictures from URLs, if the settings allow it.

    Each name is looked up once a hop, all its addresses must be public or in `fetch_networks`, and the connection goes
    to one of these very addresses; no proxy is used. Ports other than 80 and 443 are for `fetch_networks` alone.
    """

    def __init__(self, settings: Settings, resolve: Resolve = system_addresses, seconds: float = SECONDS) -> None:
        self._allowed = settings.fetch
        self._networks = tuple(ipaddress.ip_network(network) for network in settings.fetch_networks)
        self._most = settings.bounds.image
        self._resolve = resolve
        self._seconds = seconds
        self._room = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, url: str, out: Path, param: str = "image") -> None:
        """Write what a URL names to a file. Raises Refused; OSError if the file cannot be written."""
        if not self._allowed:
            text = f"{param}: this server fetches no URLs; send the picture as a file or as a data URL"
            raise refuse(400, "invalid_image_url", f"{text}, or have `fetch = true` put into its settings", param)
        target = read_target(url, param)
        line = Line(time.monotonic() + self._seconds)
        try:
            async with asyncio.timeout(self._seconds), self._room:
                await _in_thread(lambda: self._follow(target, url, out, line, param))
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            text = f"{param}: {target.host} {_reason(error, self._seconds)}; send the picture itself"
            raise refuse(400, "failed_to_download_image", text, param) from None
        except Unwritable as error:
            raise error.error from None
        finally:
            line.cut()

    def _follow(self, target: Target, url: str, out: Path, line: Line, param: str) -> None:
        for _ in range(MOST_REDIRECTS + 1):
            location = self._get(target, out, line, param)
            if location is None:
                return
            url = urljoin(url, location)
            target = read_target(url, param)
        text = f"{param}: {target.host}: more than {MOST_REDIRECTS} redirects; name the last address"
        raise refuse(400, "failed_to_download_image", text, param)

    def _get(self, target: Target, out: Path, line: Line, param: str) -> str | None:
        """Write the answer to a file, or give the address that it redirects to."""
        sock = self._connected(target, line, param)
        with sock, closing(http.client.HTTPConnection(target.host, target.port)) as connection:
            connection.sock = sock
            connection.auto_open = 0  # it would look the name up again
            connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            for name, value in _headers(target).items():
                connection.putheader(name, value)
            connection.endheaders()
            with connection.getresponse() as response:
                return self._taken(response, target, out, line, param)

    def _taken(
        self, response: http.client.HTTPResponse, target: Target, out: Path, line: Line, param: str
    ) -> str | None:
        if response.status in REDIRECTS and response.headers.get("Location"):
            return response.headers["Location"]
        if response.status != 200:
            text = f"{param}: {target.host} answered {response.status}, expected 200; send the picture itself"
            raise refuse(400, "failed_to_download_image", text, param)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise http.client.HTTPException("compressed, though not asked for")
        self._store(response, out, line, param)
        return None

    def _connected(self, target: Target, line: Line, param: str) -> socket.socket:
        """A connection to one of the addresses that were checked. Raises Refused, OSError."""
        addresses = self._addresses(target, param)
        for place, address in enumerate(addresses):
            try:
                sock = socket.create_connection((address, target.port), timeout=line.left())
                break
            except OSError:
                if place == len(addresses) - 1:
                    raise
        else:
            raise OSError("no address")
        line.take(sock)
        if target.scheme == "http":
            return sock
        sock.settimeout(line.left())
        sock = _context().wrap_socket(sock, server_hostname=target.host)
        line.take(sock)
        return sock

    def _addresses(self, target: Target, param: str) -> list[str]:
        found = [ipaddress.ip_address(text) for text in self._resolve(target.host, target.port)]
        for address in found:
            private = any(_plain(address) in network for network in self._networks)
            if not private and not is_public(address):
                text = f"{param}: the URL leads to an address that is not public; send the picture as a file"
                raise refuse(400, "invalid_image_url", text, param)
            if not private and target.port not in PORTS.values():
                text = f"{param}: the URL names port {target.port}, expected 80 or 443; send the picture as a file"
                raise refuse(400, "invalid_image_url", text, param)
        return [str(address) for address in found]

    def _store(self, response: http.client.HTTPResponse, out: Path, line: Line, param: str) -> None:
        stated = response.headers.get("Content-Length", "")
        if stated.isdecimal() and int(stated) > self._most:
            raise _too_many_bytes(param, self._most)
        part = out.with_name(f".{uuid.uuid4().hex}.part")
        try:
            size = self._write(response, part, line, param)
            if stated.isdecimal() and size != int(stated):
                raise http.client.IncompleteRead(b"")
            line.left()  # a connection that was cut looks like one that ended
            with _disk():
                part.replace(out)
        finally:
            part.unlink(missing_ok=True)

    def _write(self, response: http.client.HTTPResponse, part: Path, line: Line, param: str) -> int:
        size = 0
        with _disk():
            stream = part.open("xb")
        with stream:
            while piece := response.read1(PIECE):
                line.left()
                size += len(piece)
                if size > self._most:
                    raise _too_many_bytes(param, self._most)
                with _disk():
                    stream.write(piece)
                    stream.flush()
        return size


def read_target(url: str, param: str) -> Target:
    """A URL taken apart. Raises Refused for whatever two readers might read in two ways."""
    try:
        return _target(url)
    except ValueError as error:
        text = f"{param}: the URL {error}, expected http:// or https:// and a public host; send the picture as a file"
        raise refuse(400, "invalid_image_url", text, param) from None


def _target(url: str) -> Target:
    if re.search(r"[\s\\\x00-\x20\x7f]", url):
        raise ValueError("has spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").lower()
    except ValueError:
        raise ValueError("cannot be read") from None
    if parts.scheme not in PORTS:
        raise ValueError(f"is of the kind {one_line(parts.scheme[:20])!r}")
    if "@" in parts.netloc:
        raise ValueError("has a user name or password")
    if port == 0 or not _is_host(host):
        raise ValueError("names no host that can be asked")
    query = f"?{quote(parts.query, safe=UNQUOTED)}" if parts.query else ""
    path = quote(parts.path or "/", safe=UNQUOTED) + query
    return Target(parts.scheme, host, PORTS[parts.scheme] if port is None else port, path)


def _is_host(host: str) -> bool:
    """Whether a text is an address in its usual form, or a name that no resolver takes for an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        return _NAME.fullmatch(host) is not None and _NUMBER.fullmatch(last) is None
    return "%" not in host  # the network interface of a local address


def _plain(address: Address) -> Address:
    """The IPv4 address inside of an IPv6 one that stands for it on the same machine."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet: no private, local, shared, multicast or tunnelled one."""
    address = _plain(address)
    if not address.is_global or address.is_multicast or any(address in network for network in NOT_PUBLIC):
        return False
    return address.version == 4 or address in PLAIN_V6


def write_data_url(url: str, out: Path, most: int, param: str = "image") -> None:
    """Write the bytes of a `data:image/...;base64,...` URL to a file. Raises Refused.

    The media type it states is not relied on: what the bytes are is found when they are decoded.
    """
    head = _DATA.match(url)
    if head is None:
        text = (
            f"{param}: expected a data URL that begins with data:image/ and holds base64, as data:image/png;base64,..."
        )
        raise refuse(400, "invalid_image_url", text, param)
    code = url[head.end() :]
    if len(code) // 4 * 3 > most + 2:
        raise _too_many_bytes(param, most)
    try:
        data = binascii.a2b_base64(code.encode("ascii"), strict_mode=True)
        if len(code) % 4 or len(data) != len(code) // 4 * 3 - code[-2:].count("="):
            raise ValueError("Excess padding")
    except ValueError as error:
        text = f"{param}: the data URL is not base64 ({one_line(error)}); encode the file's bytes again"
        raise refuse(400, "invalid_base64_image", text, param) from None
    if not data:
        raise refuse(400, "empty_image_file", f"{param}: the data URL is empty; send the picture's bytes", param)
    if len(data) > most:
        raise _too_many_bytes(param, most)
    out.write_bytes(data)


def _too_many_bytes(param: str, most: int) -> Refused:
    text = f"{param}: is more than {most:,} bytes; shrink the picture or compress it better"
    return refuse(400, "image_file_too_large", text, param)


def _headers(target: Target) -> dict[str, str]:
    return {
        "Host": target.authority,
        "User-Agent": f"enlarger/{__version__}",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


def _reason(error: BaseException, seconds: float) -> str:
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
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _in_thread(work: Callable[[], None]) -> None:
    """Run a function in a thread that the process does not wait for at its end: a name server may hang for long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        caught: BaseException | None = None
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the one who waits
            caught = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, caught)

    threading.Thread(target=run, daemon=True, name="fetch").start()
    await done
