"""A real Chromium for tests of the web page: what it shows, what it complains of, and whom it asks."""

import base64
import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import texture
from tests.support.service import until

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DROP = """([files, target]) => {
  const data = new DataTransfer();
  for (const { name, type, bytes } of files) {
    data.items.add(new File([Uint8Array.from(atob(bytes), sign => sign.charCodeAt(0))], name, { type }));
  }
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
    document.querySelector(target).dispatchEvent(event);
  }
}"""


@dataclass
class WatchedPage:
    """One tab, with everything that must not happen in it written down."""

    page: Any  # playwright's
    url: str
    console_errors: list[str] = field(default_factory=list[str])
    external_urls: list[str] = field(default_factory=list[str])  # addresses of other hosts that were asked for

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def open(self) -> None:
        """Load the page, and wait until it knows the models."""
        self.page.goto(self.url)
        self.until("document.querySelector('#model').options.length > 0")

    def until(self, true: str, seconds: float = 20) -> None:
        """Wait until an expression of JavaScript is true; playwright's own way needs eval, which the page forbids."""
        until(lambda: self.page.evaluate(true), seconds, lambda: f"{true} is still false")

    def drop(self, files: Mapping[str, bytes], type: str = "image/png", target: str = "#stage") -> None:
        """Drop files on the page as a person does."""
        listed = [
            {"name": name, "type": type, "bytes": base64.b64encode(data).decode()} for name, data in files.items()
        ]
        self.page.evaluate(DROP, [listed, target])

    def wait_for_result(self, seconds: float = 60) -> None:
        """Wait until the chosen picture's result is shown."""
        self.page.wait_for_selector("#after-bar:visible, #failed:visible", timeout=seconds * 1000)
        assert self.page.is_visible("#after-bar"), self.page.inner_text("#failed")

    def violations(self) -> list[str]:
        """What axe has to say about the page as it is now."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{item['id']}: {node['html']} {node['failureSummary']}" for item in found for node in item["nodes"]]

    def _on_console(self, message: Any) -> None:
        place = message.location.get("url", "")
        if message.type in ("error", "warning") and not place.endswith("/preview"):  # a job can end before it is asked
            self.console_errors.append(f"{message.text} ({place})")

    def _on_request(self, request: Any) -> None:
        place = urlsplit(request.url)
        if place.scheme not in ("blob", "data") and f"{place.scheme}://{place.netloc}" != self.url.rstrip("/"):
            self.external_urls.append(request.url)

    def watch(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.console_errors.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._on_request)


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's or another Chromium of this machine; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Any, url: str, width: int = 1280, height: int = 800, **options: Any) -> Iterator[WatchedPage]:
    """A tab with storage of its own."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
    observed = WatchedPage(context.new_page(), url if url.endswith("/") else url + "/")
    observed.page.set_default_timeout(10_000)
    observed.watch()
    try:
        yield observed
    finally:
        observed.page.unroute_all(behavior="ignoreErrors")  # the page asks on; its last answers are nobody's concern
        context.close()


def photo(width: int = 48, height: int = 32, seed: int = 0) -> bytes:
    """A picture as a PNG file."""
    return png(Image.fromarray(texture(width, height, seed=seed)))


def png(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    """The values of a picture file."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).copy()
