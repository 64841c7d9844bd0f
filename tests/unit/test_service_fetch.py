"""URLs that name pictures: what leads to a private place is never asked, what is public is, and only so much of it."""

import asyncio
import base64
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import pytest

from enlarger.service.problems import ProblemError
from enlarger.service.settings import Bounds, Settings
from enlarger.service.uploads import fetch
from enlarger.service.uploads.data_url import write_data_url
from enlarger.service.uploads.fetch import UrlFetcher, is_public, parse_target, resolve_host
from tests.support.forbidden_urls import FORBIDDEN

LOCAL = ("127.0.0.0/8",)
PICTURE = bytes(range(256)) * 20
PUBLIC = "93.184.216.34"


@dataclass
class Server:
    """An HTTP server on this machine that counts who comes."""

    port: int
    asked: list[str] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"


class Answers(BaseHTTPRequestHandler):
    """Each path is a behaviour."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # pyright: ignore[reportAttributeAccessIssue]
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["picture"]:
                self.send(200, PICTURE)
            case ["hops", count] if count != "0":
                self.send(302, b"", Location=f"/hops/{int(count) - 1}")
            case ["hops", _]:
                self.send(200, PICTURE)
            case ["to"]:
                self.send(307, b"", Location=self.path.partition("?")[2])
            case ["short"]:
                self.send(200, PICTURE[1:], length=len(PICTURE))
            case ["stated"]:
                self.send(200, b"", length=10**9)
            case ["unstated"]:
                self.send(200, PICTURE * 20, length=None)
            case ["gzip"]:
                self.send(200, PICTURE, **{"Content-Encoding": "gzip"})
            case ["slow"]:
                self.drip()
            case _:
                self.send(404, b"a secret page")

    def send(self, status: int, body: bytes, length: int | None = -1, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        self.send(200, b"", length=1000)
        try:
            for _ in range(50):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        http.daemon_threads = True
        http.handle_error = lambda *_: None  # clients that leave are what is tested
        found = Server(http.server_port)
        http.asked = found.asked
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield found
        http.shutdown()
        thread.join()


def fetcher(*networks: str, resolve: Callable[[str, int], Sequence[str]] = resolve_host, **more) -> UrlFetcher:
    settings = Settings(fetch=True, fetch_networks=networks, bounds=Bounds(image=len(PICTURE)))
    return UrlFetcher(settings, resolve, **more)


def fetched(fetcher: UrlFetcher, url: str, out: Path) -> None:
    asyncio.run(fetcher.fetch(url, out))


def refused(fetcher: UrlFetcher, url: str, out: Path) -> tuple[str, str]:
    with pytest.raises(ProblemError) as caught:
        fetched(fetcher, url, out)
    refusal = caught.value.problem
    assert (refusal.status, refusal.param) == (400, "image") and refusal.message.startswith("image: ")
    until = time.monotonic() + 2
    while list(out.parent.iterdir()) and time.monotonic() < until:
        time.sleep(0.01)  # a fetch that was cut takes its piece away
    assert list(out.parent.iterdir()) == []
    return refusal.code, refusal.message


def test_nothing_is_fetched_unless_it_is_switched_on(tmp_path: Path, server: Server) -> None:
    code, text = refused(UrlFetcher(Settings()), server.url("picture"), tmp_path / "a")
    assert code == "invalid_image_url" and server.asked == []
    assert text == (
        "image: this server fetches no URLs; send the picture as a file or as a data URL, or have `fetch = true` put "
        "into its settings"
    )


def test_a_picture_of_an_allowed_network_is_fetched(tmp_path: Path, server: Server) -> None:
    for path in ("picture", "picture?a=b&c=%20d#e", "hops/3"):
        fetched(fetcher(*LOCAL), server.url(path), tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == PICTURE
        (tmp_path / "a").unlink()
    assert server.asked[:3] == ["/picture", "/picture?a=b&c=%20d", "/hops/3"]
    fetched(fetcher(*LOCAL, resolve=lambda *_: ["127.0.0.1"]), server.url("picture", "photos.test"), tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_the_forbidden_addresses_are_refused(url: str, tmp_path: Path, server: Server) -> None:
    code, text = refused(fetcher(), url.replace("PORT", str(server.port)), tmp_path / "a")
    assert code in ("invalid_image_url", "failed_to_download_image") and server.asked == []
    assert str(server.port) not in text or "names port" in text
    if url.startswith("http://1") and "@" not in url:
        assert code == "invalid_image_url"


def test_there_are_at_least_40_forbidden_addresses() -> None:
    assert len(set(FORBIDDEN)) >= 40


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%eth0"],
        [PUBLIC, "10.0.0.1"],
        ["::ffff:10.0.0.1"],
        ["fd00::1"],
        ["64:ff9b::a00:1"],
        ["2002:a00:1::"],
        ["0.0.0.0"],
        ["100.64.0.1"],
        [PUBLIC, "::"],
    ],
)
def test_names_that_lead_to_private_addresses_are_refused(addresses: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(anyio, "connect_tcp", never)
    url = "http://photos.test/a.png"
    code, text = refused(fetcher(resolve=lambda *_: addresses), url, tmp_path / "a")
    assert code == "invalid_image_url"
    assert text == "image: the URL leads to an address that is not public; send the picture as a file"


async def never(*arguments: object, **more: object) -> None:
    raise AssertionError("something was connected to")


def test_a_name_is_looked_up_once_and_the_connection_goes_there(tmp_path: Path, monkeypatch) -> None:
    answers, asked = [[PUBLIC], ["127.0.0.1"]], []

    async def connect(remote_host: str, remote_port: int, **more: object) -> None:
        asked.append((remote_host, remote_port))
        raise ConnectionRefusedError

    monkeypatch.setattr(anyio, "connect_tcp", connect)
    code, text = refused(fetcher(resolve=lambda *_: answers.pop(0)), "http://photos.test/a.png", tmp_path / "a")
    assert code == "failed_to_download_image" and asked == [(PUBLIC, 80)] and len(answers) == 1
    assert text == "image: photos.test cannot be reached; send the picture itself"


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:PORT/picture",
        "http://localhost/",
        "file:///etc/passwd",
        "gopher://a.test/",
        "//[::1]:PORT/picture",
        "http://169.254.169.254/",
        "http://u:p@127.0.0.1:PORT/picture",
        "http://0x7f000001:PORT/picture",
        "http://rebound.test/",
    ],
)
def test_a_redirect_to_a_private_place_is_refused(target: str, tmp_path: Path, server: Server) -> None:
    names = {"127.0.0.1": ["127.0.0.1"], "rebound.test": ["10.0.0.1"], "localhost": ["127.0.0.3"]}
    url = server.url("to?" + target.replace("PORT", str(server.port)))
    kept = fetcher("127.0.0.1/32", resolve=lambda host, _: names.get(host, [host]))
    code, _ = refused(kept, url, tmp_path / "a")
    assert code == "invalid_image_url" and len(server.asked) == 1


def test_a_host_that_rebinds_between_two_hops_is_refused(tmp_path: Path, server: Server) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    url = server.url("hops/1", "photos.test")
    code, _ = refused(fetcher(*LOCAL, resolve=lambda *_: answers.pop(0)), url, tmp_path / "a")
    assert code == "invalid_image_url" and server.asked == ["/hops/1"]


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("hops/4", "failed_to_download_image", "image: 127.0.0.1: more than 3 redirects; name the last address"),
        ("missing", "failed_to_download_image", "image: 127.0.0.1 answered 404, expected 200; send the picture itself"),
        ("short", "failed_to_download_image", "image: 127.0.0.1 did not answer with a picture; send"),
        ("gzip", "failed_to_download_image", "image: 127.0.0.1 did not answer with a picture; send"),
        ("stated", "image_file_too_large", "image: is more than 5,120 bytes; shrink the picture"),
        ("unstated", "image_file_too_large", "image: is more than 5,120 bytes; shrink the picture"),
    ],
)
def test_answers_that_are_no_good(path: str, code: str, text: str, tmp_path: Path, server: Server) -> None:
    found = refused(fetcher(*LOCAL), server.url(path), tmp_path / "a")
    assert found[0] == code and found[1].startswith(text), found


def test_a_slow_host_is_given_up(tmp_path: Path, server: Server) -> None:
    start = time.monotonic()
    code, text = refused(fetcher(*LOCAL, seconds=0.3), server.url("slow"), tmp_path / "a")
    assert code == "failed_to_download_image" and time.monotonic() - start < 1
    assert text == "image: 127.0.0.1 did not give the picture within 0.3 seconds; send the picture itself"


def test_a_name_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    hold = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        hold.wait(5)
        return ["127.0.0.1"]

    code, text = refused(fetcher(*LOCAL, resolve=resolve, seconds=0.1), "http://photos.test/", tmp_path / "a")
    hold.set()
    assert code == "failed_to_download_image" and "within 0.1 seconds" in text


def test_a_host_that_cannot_be_reached_or_looked_up(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        assert refused(fetcher(*LOCAL), url, tmp_path / "a")[1].startswith("image: 127.0.0.1 cannot be reached;")

    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "secret words")

    code, text = refused(fetcher(resolve=resolve), "https://photos.test/", tmp_path / "a")
    assert (code, text) == (
        "failed_to_download_image",
        "image: photos.test cannot be looked up; send the picture itself",
    )


def test_tls_that_is_none_is_refused(tmp_path: Path, server: Server) -> None:
    url = server.url("picture").replace("http:", "https:")
    assert "cannot be reached securely" in refused(fetcher(*LOCAL), url, tmp_path / "a")[1]


def test_ports_of_public_hosts_are_80_and_443(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(anyio, "connect_tcp", never)
    code, text = refused(fetcher(resolve=lambda *_: [PUBLIC]), "http://photos.test:22/", tmp_path / "a")
    assert (code, text) == (
        "invalid_image_url",
        "image: the URL names port 22, expected 80 or 443; send the picture as a file",
    )


def test_a_disk_that_is_full_is_no_fault_of_the_url(tmp_path: Path, server: Server) -> None:
    with pytest.raises(FileNotFoundError):
        fetched(fetcher(*LOCAL), server.url("picture"), tmp_path / "missing" / "a")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a.test/", "is of the kind 'ftp', expected http:// or https:// and a public host"),
        ("photo.png", "is of the kind ''"),
        ("http://a.test/a b", "has spaces, control characters or backslashes"),
        ("http://u@a.test/", "has a user name or password"),
        ("http://a.test:99999/", "cannot be read"),
        ("http://[::1/", "cannot be read"),
        ("http://a..test/", "names no host that can be asked"),
        ("http://1.2.3/", "names no host that can be asked"),
        ("http://a.0x1/", "names no host that can be asked"),
    ],
)
def test_what_is_said_of_urls_that_cannot_be_read(url: str, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_target(url, "mask")
    assert caught.value.problem.message.startswith("mask: the URL ") and words in caught.value.problem.message


def test_a_url_is_taken_apart() -> None:
    target = parse_target("HTTPS://Photos.Test:8443/ä b.png?q=ü#part".replace(" ", "%20"), "image")
    assert (target.scheme, target.host, target.port) == ("https", "photos.test", 8443)
    assert target.path == "/%C3%A4%20b.png?q=%C3%BC" and target.authority == "photos.test:8443"
    assert parse_target("http://[2606:4700::1]", "image").authority == "[2606:4700::1]"


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_data_url_becomes_a_file(tmp_path: Path) -> None:
    out, code = tmp_path / "a", base64.b64encode(PICTURE).decode()
    for head in ("data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,"):
        write_data_url(head + code, out, len(PICTURE))
        assert out.read_bytes() == PICTURE
        out.unlink()


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [
        ("data:text/html;base64,AAAA", "invalid_image_url", "expected a data URL that begins with data:image/"),
        ("data:image/png,AAAA", "invalid_image_url", "expected a data URL that begins with data:image/"),
        ("https://a.test/", "invalid_image_url", "expected a data URL"),
        ("data:image/png;base64,AAA", "invalid_base64_image", "the data URL is not base64 ("),
        ("data:image/png;base64,AAAA====", "invalid_base64_image", "the data URL is not base64 ("),
        ("data:image/png;base64,AA AA", "invalid_base64_image", "; encode the file's bytes again"),
        ("data:image/png;base64,AA%2B", "invalid_base64_image", "the data URL is not base64 ("),
        ("data:image/png;base64,ÄÄÄÄ", "invalid_base64_image", "the data URL is not base64 ("),
        ("data:image/png;base64,", "empty_image_file", "the data URL is empty; send the picture's bytes"),
        ("data:image/png;base64," + "AAAA" * 4, "image_file_too_large", "is more than 10 bytes; shrink the picture"),
        ("data:image/png;base64," + "A" * 15 + "=", "image_file_too_large", "is more than 10 bytes"),
    ],
)
def test_data_urls_that_are_no_good(url: str, code: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ProblemError) as caught:
        write_data_url(url, tmp_path / "a", 10, "image")
    refusal = caught.value.problem
    assert (refusal.status, refusal.code, refusal.param) == (400, code, "image")
    assert text in refusal.message and refusal.message.startswith("image: ") and not (tmp_path / "a").exists()


def test_the_default_deadline_is_ten_seconds() -> None:
    assert fetch.TIMEOUT_SECONDS == 10 and fetch.MAX_REDIRECTS == 3
