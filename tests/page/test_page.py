"""The web page in a real Chromium against a real service: what a person does, by pointer and by keyboard."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from enlarger.image.generation import add_generation
from enlarger.service.routes.page import PAGE_FILES
from tests.support.browser import WatchedPage, chromium, photo, pixels, png, tab
from tests.support.service import Served, running

MOST_BYTES = 100_000
LOCAL = {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
HOSTILE = (
    "<script>hit=1</script>", "<img src=x onerror=hit=1>", '"><svg onload=hit=1>', "'><script>hit=1</script>",
    "javascript:hit=1", "<iframe srcdoc='<script>parent.hit=1</script>'>", "</textarea><script>hit=1</script>",
    "</title><script>hit=1</script>", "${hit=1}", "{{constructor.constructor('hit=1')()}}", "`${hit=1}`",
    "<a href=javascript:hit=1 autofocus onfocus=hit=1>x</a>", "<details open ontoggle=hit=1>", "<body onload=hit=1>",
    "<style>@import 'http://evil.example/x.css'</style>", "<link rel=stylesheet href=http://evil.example/x.css>",
    "<img src=http://evil.example/x.png>", "<base href=http://evil.example/>", "<meta http-equiv=refresh content=0>",
    "<object data=http://evil.example/>", "<form action=http://evil.example/><button>go", "&lt;script&gt;hit=1",
    "\\u003cscript\\u003ehit=1", "%3Cscript%3Ehit=1%3C/script%3E", "<math><mi xlink:href=javascript:hit=1>x",
    "<video><source onerror=hit=1>", "<input autofocus onfocus=hit=1>", "<marquee onstart=hit=1>", "'-hit=1-'",
    "\u202egnp.exe",
)  # fmt: skip

KEEP_FORM = """() => {
  const send = window.fetch;
  const text = async value => btoa(String.fromCharCode(...new Uint8Array(await new Response(value).arrayBuffer())));
  window.fetch = async (address, options) => {
    if (options.body instanceof FormData) {
      const kept = {};
      for (const [name, value] of options.body) kept[name] = await text(value);
      window.form = kept;
    }
    return send(address, options);
  };
}"""


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with running(models=("tiny-sd",)) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, service: Served) -> Iterator[WatchedPage]:
    """The page, loaded; afterwards nothing was complained of and no other host was asked."""
    with tab(browser, service.url) as observed:
        try:
            observed.open()
            yield observed
        finally:
            for job in httpx2.get(f"{service.url}/v1/jobs").json()["data"]:
                httpx2.delete(f"{service.url}/v1/jobs/{job['id']}")
        assert observed.console_errors == []
        assert observed.external_urls == []


def enlarge(page: WatchedPage, name: str = "photo.png", data: bytes | None = None) -> bytes:
    """Drop a picture, enlarge it, wait for the result."""
    data = photo() if data is None else data
    page.drop({name: data})
    page.wait_for_selector(".pick")
    page.click("#go")
    page.wait_for_result()
    return data


def result(page: WatchedPage) -> bytes:
    """The file behind the download button."""
    return httpx2.get(page.get_attribute("#download", "href"), timeout=30).content


def clip(page: WatchedPage) -> float:
    """How many pixels of the view's left side the later picture leaves free."""
    text = page.evaluate("getComputedStyle(document.querySelector('#layer-after')).clipPath")
    return float(re.findall(r"([\d.]+)px\)$", text)[0])


def slow(page: WatchedPage) -> None:
    """Start a job that takes longer than any test."""
    page.click("#tab-generate")
    page.fill("#prompt", "a slow one")
    page.fill("#width", "512")
    page.fill("#height", "512")
    page.click("#more summary")
    page.fill("#steps", "150")
    page.fill("#count", "10")
    page.click("#go")


def test_the_page_is_small_and_asks_for_no_inline_code() -> None:
    parts = {name: page_file.content for name, page_file in PAGE_FILES.items()}
    assert set(parts) == {item.name for item in (files("enlarger.service") / "page").iterdir()}
    assert sum(map(len, parts.values())) <= MOST_BYTES
    for name, data in parts.items():
        assert b"innerHTML" not in data and b"http://" not in data.replace(b"http://www.w3.org/2000/svg", b""), name
        assert b"https://" not in data and b"eval(" not in data, name
    assert not re.search(rb"<script>|<style|\sstyle=|\son\w+=", parts["index.html"])


def test_no_text_of_several_lines_begins_one_as_a_comment_does() -> None:
    """Indentation and lines of comment are not sent; in a template they would be text."""
    for item in (files("enlarger.service") / "page").iterdir():
        within = False
        for line in item.read_text().splitlines() if item.name.endswith(".js") else ():
            assert not (within and line.startswith(("\t", "//", "/*"))), f"{item.name}: {line}"
            within ^= line.count("`") % 2 == 1


def test_a_dropped_photo_is_enlarged_while_progress_is_told(page: WatchedPage) -> None:
    page.evaluate(
        """() => {
          window.values = [];
          window.said = [];
          const note = () => window.values.push(document.querySelector('#progress').value);
          new MutationObserver(note).observe(document.querySelector('#progress'), { attributes: true });
          const hear = () => window.said.push(document.querySelector('#live').textContent);
          new MutationObserver(hear).observe(document.querySelector('#live'), { childList: true });
        }"""
    )
    data = enlarge(page)
    values = page.evaluate("window.values")
    assert values == sorted(values) and values[-1] == 100
    said = page.evaluate("window.said")
    assert said[-1].startswith("photo.png: Done") and len(said) < 10
    assert "96 × 64" in page.inner_text("#facts") and page.inner_text(".state") == "Done"
    made = pixels(result(page))
    assert made.shape == (64, 96, 3)
    assert np.abs(made[::2, ::2].astype(int) - pixels(data)).mean() < 12
    assert page.evaluate("document.querySelector('#after').naturalWidth") == 96
    assert page.violations() == []


def test_the_line_between_before_and_after_obeys_the_keyboard(page: WatchedPage) -> None:
    enlarge(page)
    middle = clip(page)
    page.focus("#cut")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    left = clip(page)
    page.keyboard.press("End")
    assert left < middle < clip(page)
    page.focus("#view")
    fitted = page.inner_text("#zoom-now")
    for _ in range(8):
        page.keyboard.press("+")
    assert page.inner_text("#zoom-now") != fitted
    before = page.evaluate("document.querySelector('#after').style.transform")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('#after').style.transform") != before
    page.keyboard.press("0")
    assert page.inner_text("#zoom-now") == fitted
    page.click("#pixels")
    assert page.evaluate("getComputedStyle(document.querySelector('#after')).imageRendering") == "pixelated"


def test_the_pointer_moves_the_line_zooms_and_pans(page: WatchedPage) -> None:
    enlarge(page)
    box = page.locator("#view").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    start = clip(page)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1], steps=4)
    page.mouse.up()
    assert clip(page) == pytest.approx(start + 60, abs=4)
    fitted = page.inner_text("#zoom-now")
    page.mouse.wheel(0, -600)
    page.until(f"document.querySelector('#zoom-now').textContent !== '{fitted}'")
    before = page.evaluate("document.querySelector('#after').style.transform")
    page.mouse.move(box["x"] + 40, middle[1])
    page.mouse.down()
    page.mouse.move(box["x"] + 10, middle[1] + 30, steps=4)
    page.mouse.up()
    assert page.evaluate("document.querySelector('#after').style.transform") != before


def test_escape_asks_before_it_cancels_a_long_job(page: WatchedPage, service: Served) -> None:
    slow(page)
    page.wait_for_selector('li[data-state="running"]')
    page.focus("#prompt")
    page.keyboard.press("Escape")
    assert page.is_hidden("#ask-stop")
    page.focus("#go")
    page.keyboard.press("Escape")
    assert page.inner_text("#stop-title") == "Stop working on a slow one?" and page.violations() == []
    assert page.is_visible("#ask-stop")
    page.keyboard.press("Escape")
    assert page.is_hidden("#ask-stop") and page.locator('li[data-state="running"]').count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_selector("#failed:visible")
    assert "Canceled" in page.inner_text("#failed-title")
    newest = httpx2.get(f"{service.url}/v1/jobs").json()["data"][0]
    assert newest["status"] == "canceled"
    assert page.is_visible("#retry")


def test_the_queue_holds_several_pictures_and_one_can_be_dropped_from_it(page: WatchedPage) -> None:
    slow(page)
    page.wait_for_selector('li[data-state="running"]')
    page.click("#tab-upscale")
    page.fill("#count", "1")
    page.drop({f"{i}.png": photo(seed=i) for i in range(3)})
    page.wait_for_selector("#cards li:nth-child(4)")
    assert page.inner_text("#go") == "Enlarge 3 pictures"
    page.click("#go")
    page.until("document.querySelectorAll('[data-state=queued]').length === 3")
    assert page.inner_text("#batch") == "0 of 4 done"
    assert page.violations() == []
    page.click("#cards li:nth-child(1) .close")
    page.click("li[data-state=running] .pick")
    page.click("#cancel")
    page.until("document.querySelectorAll('[data-state=succeeded]').length === 2", 60)
    assert page.locator("#cards li").count() == 3


def test_a_painted_mask_is_sent_and_what_is_not_painted_stays(page: WatchedPage) -> None:
    page.click("#tab-inpaint")
    data = photo(96, 64)
    page.drop({"photo.png": data})
    page.wait_for_selector("#painter:visible")
    page.click("#go")
    assert page.inner_text("#trouble") == "Paint over what should change first."
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5, steps=3)
    page.mouse.up()
    page.focus("#canvas")
    assert page.is_visible("#brush-at")
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "]", "Space"):
        page.keyboard.press(key)
    assert page.violations() == []
    page.fill("#prompt", "a red door")
    page.click("#more summary")
    page.fill("#steps", "2")
    page.evaluate(KEEP_FORM)
    page.click("#go")
    page.until("window.form !== undefined")
    fields = {name: base64.b64decode(value) for name, value in page.evaluate("window.form").items()}
    mask = pixels(fields["mask"])
    assert mask.shape[:2] == (64, 96) and fields["mask_mode"] == b"luminance" and fields["prompt"] == b"a red door"
    grey = mask[..., 0] if mask.ndim == 3 else mask
    assert grey[32, 24] == 255 and grey[2, 2] == 0 and 0.01 < (grey > 127).mean() < 0.4
    page.wait_for_result()
    made = pixels(result(page))
    assert np.array_equal(made[:4], pixels(data)[:4])


def test_the_mask_can_be_undone_inverted_and_cleared(page: WatchedPage) -> None:
    page.click("#tab-inpaint")
    page.drop({"photo.png": photo(64, 64)})
    page.wait_for_selector("#painter:visible")
    page.focus("#canvas")

    def share() -> float:
        """How much of the canvas is painted."""
        drawn = page.evaluate("document.querySelector('#canvas').toDataURL()")
        return float((pixels(base64.b64decode(drawn.partition(",")[2]))[..., 3] > 127).mean())

    page.keyboard.press("Space")
    dab = share()
    assert 0 < dab < 0.2
    page.click("#invert")
    assert share() == pytest.approx(1 - dab, abs=0.02)
    page.focus("#canvas")
    page.keyboard.press("Control+z")
    assert share() == pytest.approx(dab, abs=1e-6)
    page.keyboard.press("e")
    page.keyboard.press("Space")
    assert share() < 0.01
    page.click("#go")
    assert page.inner_text("#trouble") == "Paint over what should change first."  # all of it is erased
    page.click("#invert")
    page.click("#wipe")
    assert share() == 0
    page.evaluate("document.querySelector('#trouble').textContent = ''")
    page.click("#go")
    assert page.inner_text("#trouble") == "Paint over what should change first."


def test_result_and_recipe_are_downloaded_and_the_recipe_is_put_back(page: WatchedPage, tmp_path: Path) -> None:
    page.click("#more summary")
    page.fill("#seed", "41")
    page.check("[name=times][value='3']")
    page.evaluate("document.querySelector('#detail').value = 0.5")
    page.dispatch_event("#detail", "input")
    enlarge(page)
    with page.expect_download() as coming:
        page.click("#download")
    assert coming.value.suggested_filename == "photo-144x96.png"
    made = Path(coming.value.path()).read_bytes()
    with page.expect_download() as coming:
        page.click("#recipe")
    assert coming.value.suggested_filename == "photo.recipe.json"
    recipe = json.loads(Path(coming.value.path()).read_text())
    assert recipe["seeds"] == [41] and recipe["options"]["by"] == 3 and recipe["options"]["detail"] == 0.5
    with Image.open(io.BytesIO(made)) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile) and json.loads(image.text["enlarger"]) == recipe

    def settings() -> list[str]:
        return [page.input_value(f"#{name}") for name in ("seed", "factor", "detail")]

    for name, data, type in (
        ("made.png", made, "image/png"),
        ("recipe.json", json.dumps(recipe).encode(), "application/json"),
    ):
        page.open()
        assert settings() == ["", "2", "0"]
        page.drop({name: data}, type)
        page.wait_for_selector("#found:visible")
        if type == "image/png":
            page.click("#found-use")
        assert settings() == ["41", "3", "0.5"] and page.is_checked("[name=times][value='3']")


def test_the_code_shown_gives_the_same_picture(page: WatchedPage, tmp_path: Path) -> None:
    data = photo()
    page.click("#more summary")
    page.fill("#seed", "7")
    page.check("[name=times][value=other]")
    page.fill("#factor", "1.5")
    enlarge(page, 'it\'s a "photo".png', data)
    expected = pixels(result(page))
    (tmp_path / 'it\'s a "photo".png').write_bytes(data)
    page.click("#code summary")
    environment = os.environ | LOCAL | {"PYTHONPATH": str(Path.cwd())}
    runs = {"curl": ["bash", "-c"], "requests": [sys.executable, "-c"], "enlarger.Client": [sys.executable, "-c"]}
    if not (shutil.which("curl") and shutil.which("jq")):
        del runs["curl"]
    for kind, command in runs.items():
        page.select_option("#language", label=kind)
        code = page.inner_text("#snippet")
        done = subprocess.run([*command, code], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        made = tmp_path / "result.png"
        assert np.array_equal(pixels(made.read_bytes()), expected), kind
        made.unlink()


def test_code_for_generating_gives_the_same_picture(page: WatchedPage, tmp_path: Path) -> None:
    page.click("#tab-generate")
    page.fill("#prompt", 'it\'s $HOME, a "door" \\ 100 % @file ünïcödé')
    page.click("#more summary")
    for name, value in {"steps": "2", "seed": "0", "width": "64", "height": "72"}.items():
        page.fill(f"#{name}", value)
    page.click("#go")
    page.wait_for_result()
    expected = pixels(result(page))
    assert expected.shape == (72, 64, 3)
    page.click("#code summary")
    environment = os.environ | LOCAL
    for kind, command in {
        "curl": ["bash", "-c"],
        "requests": [sys.executable, "-c"],
        "openai": [sys.executable, "-c"],
    }.items():
        if kind == "curl" and not (shutil.which("curl") and shutil.which("jq")):
            continue
        page.select_option("#language", label=kind)
        code = page.inner_text("#snippet")
        done = subprocess.run([*command, code], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert np.array_equal(pixels((tmp_path / "result.png").read_bytes()), expected), kind


def test_hostile_names_prompts_and_recipes_are_text(page: WatchedPage) -> None:
    page.evaluate("() => { window.hit = undefined }")
    page.drop({f"{name}.png": photo(8, 8) for name in HOSTILE})
    page.until(f"document.querySelectorAll('#cards li').length === {len(HOSTILE)}")
    info = PngImagePlugin.PngInfo()
    recipe = {
        "task": HOSTILE[1],
        "model": HOSTILE[0],
        "options": {"prompt": HOSTILE[2], "by": HOSTILE[1]},
        "seeds": [HOSTILE[1]],
    }
    info.add_itxt("enlarger", json.dumps(recipe))
    page.drop({f"{HOSTILE[1]}.png": png(Image.new("RGB", (8, 8)), pnginfo=info)})
    page.click("#found-use")
    page.click("#tab-generate")
    page.click("#code summary")
    page.click("#more summary")
    page.fill("#seed", "")
    page.fill("#steps", "1")
    page.fill("#width", "64")
    page.fill("#height", "64")
    for prompt in HOSTILE[:3]:
        page.fill("#prompt", prompt)
        page.click("#go")
        page.wait_for_result()
        assert prompt in page.inner_text("#cards li:first-child")
    for prompt in HOSTILE:
        page.fill("#prompt", prompt)
        for kind in ("curl", "requests", "openai"):
            page.select_option("#language", label=kind)
    assert page.evaluate("window.hit") is None
    assert page.locator("#stage script, #cards script, main iframe, main [onerror], main a:not(#download)").count() == 0


def test_what_is_wrong_is_said_at_its_field(page: WatchedPage) -> None:
    page.click("#tab-generate")
    page.click("#more summary")
    page.fill("#seed", "-1")
    page.click("#go")
    assert page.inner_text("#seed-error") == "Give a whole number from 0 to 9007199254740991."
    assert page.get_attribute("#seed", "aria-describedby") == "seed-error"
    assert page.evaluate("document.activeElement.id") == "seed"
    assert page.violations() == []
    page.fill("#seed", "1")
    assert page.locator("#seed-error").count() == 0
    page.fill("#width", "64")
    page.click("#go")
    assert page.inner_text("#height-error") == "Give both width and height, or neither."


def test_a_file_that_is_no_picture_fails_in_words(page: WatchedPage) -> None:
    page.drop({"broken.png": b"\x89PNG\r\n\x1a\nnothing"})
    page.wait_for_selector("#failed:visible")
    assert "cannot show" in page.inner_text("#failed-text")
    page.click("#go")
    page.wait_for_selector('li[data-state="failed"]')
    assert len(page.inner_text("#failed-text")) > 20
    page.console_errors.clear()  # Chromium notes each 4xx
    page.drop({"notes.txt": b"hello"}, "text/plain")
    assert "neither a picture nor a recipe" in page.inner_text("#found-text")


def test_a_busy_service_is_asked_again_when_it_says_so(page: WatchedPage) -> None:
    answers = [429]

    def busy(route: Any) -> None:
        if not answers:
            return route.continue_()
        error = {"message": "16 jobs wait already.", "type": "rate_limit_error", "param": None, "code": "queue_full"}
        return route.fulfill(status=answers.pop(), headers={"Retry-After": "2"}, json={"error": error})

    page.route("**/v1/images/upscale", busy)
    page.drop({"photo.png": photo()})
    page.wait_for_selector(".pick")
    page.click("#go")
    page.wait_for_selector('li[data-state="waiting"]')
    assert "16 jobs wait already. Trying again in" in page.inner_text("#doing-more")
    page.wait_for_result()
    page.console_errors.clear()


def test_without_streams_the_job_is_asked_for(page: WatchedPage) -> None:
    page.route("**/events", lambda route: route.abort())
    enlarge(page)
    assert "96 × 64" in page.inner_text("#facts")
    page.console_errors.clear()


def test_a_key_is_asked_for_and_sent(page: WatchedPage) -> None:
    seen: list[str | None] = []

    def protected(route: Any) -> None:
        seen.append(route.request.headers.get("authorization"))
        if seen[-1] == "Bearer right":
            return route.continue_()
        return route.fulfill(status=401, json={"error": {"message": "no key", "code": "invalid_api_key"}})

    page.route("**/v1/models", protected)
    page.goto(page.url)
    page.wait_for_selector("#ask-key:visible")
    assert page.violations() == []
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.until("document.querySelector('#key-error').textContent !== ''")
    page.fill("#key", "right")
    page.click("#key-use")
    page.until("document.querySelector('#model').options.length > 0")
    assert seen[-1] == "Bearer right" and page.evaluate("localStorage.length") <= 2
    assert page.evaluate("sessionStorage.getItem('enlarger.key')") == "right"
    page.console_errors.clear()


def test_the_gallery_outlives_a_reload_and_says_what_has_expired(page: WatchedPage, service: Served) -> None:
    enlarge(page)
    job = httpx2.get(f"{service.url}/v1/jobs").json()["data"][0]["id"]
    page.open()
    page.wait_for_result()
    assert page.is_visible("#divider") and page.locator(".thumb:visible").count() == 1
    page.until("document.querySelector('#before').naturalWidth === 48")
    httpx2.delete(f"{service.url}/v1/jobs/{job}")
    page.open()
    page.wait_for_selector('li[data-state="expired"]')
    page.console_errors.clear()
    assert "Expired" in page.inner_text("#failed-title")
    page.click("#retry")
    page.wait_for_result()
    page.click("#clear")
    assert page.locator("#cards li").count() == 0
    page.open()
    assert page.is_visible("#empty")


def test_the_result_goes_on_to_another_task(page: WatchedPage) -> None:
    enlarge(page)
    page.click("#onward")
    page.wait_for_selector('li[data-state="ready"]')
    assert page.inner_text("#cards li:first-child .name") == "photo-96x64.png"
    page.click("#tab-refine")
    page.fill("#prompt", "finer")
    page.click("#more summary")
    page.fill("#steps", "4")
    page.click("#go")
    page.wait_for_result()
    assert "96 × 64" in page.inner_text("#facts")


def test_twenty_pictures_share_one_stream_keep_their_order_and_come_as_one_file(page: WatchedPage) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    names = [f"{i:02d}.png" for i in range(19)] + ["00.png"]
    for group in (names[:19], names[19:]):  # one drop has each name once
        page.drop({name: photo(8, 8, seed=i) for i, name in enumerate(group)})
    page.until("document.querySelectorAll('[data-state=ready]').length === 20")
    page.click("#go")
    page.until("document.querySelectorAll('[data-state=succeeded]').length === 20", 60)
    assert page.locator(".name").all_inner_texts() == ["00.png", *names[:19]]
    assert sum(url.endswith("/events") for url in asked) == 1
    with page.expect_download() as coming:
        page.click("#save-all")
    with zipfile.ZipFile(coming.value.path()) as packed:
        assert packed.testzip() is None
        stored = [f"{name[:2]}-16x16.png" for name in names[:19]]
        assert packed.namelist() == [stored[0], "00-16x16 (2).png", *stored[1:]]


def test_what_the_service_does_not_take_is_said_before_it_is_sent(page: WatchedPage, service: Served) -> None:
    found = httpx2.get(f"{service.url}/v1/models").json()
    for model in found["data"]:
        model["enlarger"]["output_pixels"] = 90 * 90
    page.route("**/v1/models", lambda route: route.fulfill(json=found))
    page.open()
    page.drop({"photo.png": photo(48, 48)})
    page.wait_for_selector("#found:visible")
    assert page.inner_text("#found-text").startswith("photo.png would become 96 × 96")
    assert page.inner_text(".state") == "Does not fit" and "at most" in page.inner_text("#notes")
    page.click("#go")
    assert page.is_hidden("#found") and page.inner_text("#trouble").startswith("photo.png would become")
    page.check("[name=times][value=other]")
    page.fill("#factor", "1.5")
    page.click("#go")
    page.wait_for_result()


def test_a_tiff_shows_a_picture(page: WatchedPage) -> None:
    deep = np.asarray(Image.open(io.BytesIO(photo(60, 44))).convert("L")).astype(np.uint16) * 257
    shapes = {"rgb": np.asarray(Image.open(io.BytesIO(photo(60, 44)))), "grey16": deep}
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate"):
        for name, values in shapes.items():
            stream = io.BytesIO()
            predictor = {} if compression == "raw" else {317: 2}
            Image.fromarray(values).save(stream, "TIFF", compression=compression, tiffinfo=predictor)
            page.drop({f"{name}.tif": stream.getvalue()}, "image/tiff")
            page.wait_for_selector("#viewer:visible")
            page.until("document.querySelector('#after').naturalWidth === 60")
            page.wait_for_timeout(50)
            shown = page.evaluate(
                """() => {
                  const pen = new OffscreenCanvas(60, 44).getContext('2d');
                  pen.drawImage(document.querySelector('#after'), 0, 0);
                  return [...pen.getImageData(0, 0, 60, 44).data];
                }"""
            )
            seen = np.array(shown, np.uint8).reshape(44, 60, 4)[..., :3]
            wanted = np.broadcast_to(values[..., None] >> 8, seen.shape) if values.ndim == 2 else values
            assert np.array_equal(seen, wanted), (name, compression)
            page.click("#cards .close")


def test_what_is_turned_is_shown_upright(page: WatchedPage) -> None:
    image = Image.open(io.BytesIO(photo(20, 12)))
    for turn in (3, 5, 6, 8):
        for kind in ("TIFF", "WEBP"):
            stream, exif = io.BytesIO(), Image.Exif()
            exif[274] = turn
            image.save(stream, kind, lossless=True, exif=exif)
            upright = np.asarray(ImageOps.exif_transpose(Image.open(stream)))
            high, wide = upright.shape[:2]
            page.drop({f"{turn}.{kind}": stream.getvalue()}, f"image/{kind.lower()}")
            page.until(f"document.querySelector('.name').textContent === '{turn}.{kind}'")
            page.until(f"document.querySelector('.state').textContent === '{wide} × {high}'")
            page.until(f"document.querySelector('#after').naturalWidth === {wide}")
            page.wait_for_timeout(50)
            shown = page.evaluate(
                """([wide, high]) => {
                  const pen = new OffscreenCanvas(wide, high).getContext('2d');
                  pen.drawImage(document.querySelector('#after'), 0, 0);
                  return [...pen.getImageData(0, 0, wide, high).data];
                }""",
                [wide, high],
            )
            assert np.array_equal(np.array(shown, np.uint8).reshape(high, wide, 4)[..., :3], upright), (turn, kind)


def test_sizes_are_asked_for_as_in_the_library(page: WatchedPage) -> None:
    page.drop({"photo.png": photo(5, 3)})
    page.wait_for_selector('li[data-state="ready"]')
    page.check("[name=times][value=other]")
    page.click("#code summary")
    for option, value, field, becomes in (
        ("factor", "1.5", "scale=1.5", "8 × 5"),  # halves are rounded up
        ("target", "10x6", "target_size=10x6", "10 × 6"),
        ("long_edge", "15", "long_edge=15", "15 × 9"),
        ("megapixels", "0.001", "megapixels=0.001", "41 × 24"),
    ):
        page.select_option("#sizing", option)
        page.evaluate("document.querySelector('#megapixels').min = 0")
        page.fill(f"#{option}", value)
        assert page.inner_text("#becomes") == f"5 × 3 becomes {becomes}", option
        assert f"'{field}'" in page.inner_text("#snippet")
    assert page.violations() == []
    page.select_option("#sizing", "long_edge")
    for refused in ("4", "81"):
        page.fill("#long_edge", refused)
        assert page.inner_text(".state") == "Does not fit" and "cannot become" in page.inner_text("#notes")
    page.fill("#long_edge", "")
    page.click("#go")
    assert page.inner_text("#long_edge-error") == "Give a whole number from 1 to 65536."
    page.select_option("#sizing", "target")
    page.fill("#target", "10")
    page.click("#go")
    assert page.inner_text("#target-error") == "Give a size such as 3000x2000."
    page.fill("#target", "10x3")
    assert "5 × 3" not in page.inner_text("#becomes") and page.inner_text(".state") == "Does not fit"
    page.check("[name=times][value='3']")
    assert page.inner_text("#becomes") == "5 × 3 becomes 15 × 9" and "'scale=3'" in page.inner_text("#snippet")


PARAMETERS = (
    "a red door, (old:1.2)\nof wood\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, "
    "Size: 512x768, Model hash: abc, Model: tiny-sd, Version: v1.9"
)


def with_recipes() -> dict[str, bytes]:
    """Pictures whose files say what made them: by A1111's text, or by ours."""
    image, exif, texts = Image.new("RGB", (300, 200)), Image.Exif(), PngImagePlugin.PngInfo()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PARAMETERS.encode("utf-16-be")
    texts.add_text("parameters", PARAMETERS)
    options = {"long_edge": 4096, "solver": "euler", "restore": 0.0, "count": 1, "prompt": "<a> & b", "feather": 4}
    made = {"enlarger": "1", "task": "upscale", "model": "bundled", "options": options, "seeds": [5]}
    info, _ = add_generation({}, made, "JPEG", image.size)
    found = {"a.png": png(image, pnginfo=texts)}
    for name, kind, extra in (("a.jpg", "JPEG", {"exif": exif}), ("b.jpg", "JPEG", info), ("b.webp", "WEBP", info)):
        stream = io.BytesIO()
        image.save(stream, kind, **extra)
        found[name] = stream.getvalue()
    return found


def test_recipes_of_pictures_and_of_a1111_fill_the_form(page: WatchedPage) -> None:
    for name, data in ({"a.txt": PARAMETERS.encode()} | with_recipes()).items():
        page.open()
        page.drop({name: data}, "text/plain" if name == "a.txt" else f"image/{name[2:]}")
        page.wait_for_selector("#found:visible")
        if name != "a.txt":
            page.click("#found-use")
        ours = name.startswith("b")
        said = "solver euler" if ours else "Sampler Euler a"
        assert page.inner_text("#found-text") == f"The settings of {name} are in place. Not on this page: {said}."
        wanted = {"sizing": "long_edge", "long_edge": "4096", "prompt": "<a> & b", "seed": "5"}
        if not ours:
            wanted = {"prompt": "a red door, (old:1.2)\nof wood", "negative": "blurry", "steps": "20", "guidance": "7"}
            wanted |= {"seed": "123", "width": "512", "height": "768"}
        assert {key: page.input_value(f"#{key}") for key in wanted} == wanted, name
        assert page.get_attribute("#tab-upscale" if ours else "#tab-generate", "aria-selected") == "true"


def test_what_a_recipe_says_beside_the_form_is_named(page: WatchedPage) -> None:
    recipe = {"task": "depth", "model": "bundled", "options": {"strength": 0.8, "loras": [["oil", 1]], "styles": []}}
    page.drop({"x.json": json.dumps(recipe | {"seeds": [2**64 - 1]}).encode()}, "application/json")
    page.wait_for_selector("#found:visible")
    assert page.inner_text("#found-text").endswith(
        "Not on this page: loras oil,1, task depth, seed 18446744073709552000."
    )


def test_a_png_of_many_chunks_is_read_to_its_pixels_alone(page: WatchedPage) -> None:
    page.evaluate(
        """() => {
          const slice = Blob.prototype.slice;
          window.slices = 0;
          Blob.prototype.slice = function (...range) { window.slices++; return slice.apply(this, range); };
        }"""
    )
    start, empty = photo(8, 8)[:33], b"\0\0\0\0abCd\0\0\0\0"
    for name, chunks, most in (("pixels.png", b"\0\0\0\0IDAT\0\0\0\0" * 5000, 10), ("empty.png", empty * 5000, 1100)):
        page.evaluate("window.slices = 0")
        page.drop({name: start + chunks})
        page.wait_for_selector(f"[title='{name}']")
        page.until("document.querySelector('.state').textContent === 'Ready'")
        assert 1 < page.evaluate("window.slices") <= most, name


def remembered(page: WatchedPage, state: str) -> None:
    """Let the browser remember a job of an earlier visit."""
    card = {"key": "k", "at": [1, 0], "name": "photo.png", "state": state, "id": "job", "size": [8, 8], "message": ""}
    card |= {"task": "upscale", "request": {"files": ["image"], "fields": {}}, "batch": 1}
    page.evaluate("card => localStorage.setItem('enlarger.card.k', JSON.stringify(card))", card)


def test_a_finished_picture_is_shown_once_the_key_is_given(page: WatchedPage) -> None:
    result = {"data": [{"width": 16, "height": 16, "seed": 1, "format": "png"}], "enlarger": {"warnings": []}}

    def protected(route: Any) -> None:
        if route.request.headers.get("authorization") != "Bearer right":
            return route.fulfill(status=401, json={"error": {"message": "no key"}})
        if route.request.url.endswith("/v1/models"):
            return route.continue_()
        return route.fulfill(json={"id": "job", "status": "succeeded", "progress": 1, "result": result})

    page.route("**/v1/models", protected)
    page.route("**/v1/jobs/job", protected)
    page.route("**/content?*", lambda route: route.fulfill(body=photo(16, 16), content_type="image/png"))
    remembered(page, "succeeded")
    page.goto(page.url)
    page.wait_for_selector("#ask-key:visible")
    assert page.is_hidden("#cancel")  # there is nothing to stop
    page.fill("#key", "right")
    page.click("#key-use")
    page.wait_for_selector("#after-bar:visible")
    assert "16 × 16, seed 1" in page.inner_text("#facts")
    page.console_errors.clear()  # Chromium notes each 4xx


def test_a_job_that_is_not_canceled_is_not_called_so(page: WatchedPage) -> None:
    answers: list[Any] = []
    page.route("**/v1/jobs/events", lambda route: route.abort())
    page.route("**/v1/jobs/job", lambda route: route.fulfill(json={"id": "job", "status": "running", "progress": 0.5}))
    page.route("**/v1/jobs/job/cancel", lambda route: route.fulfill(**answers[0]))
    remembered(page, "running")
    page.open()
    for answer in ({"status": 429, "json": {"error": {"message": "Slow down."}}}, {"status": 401, "json": {}}):
        answers[:] = [answer]
        for button in ("#cancel", "#cards .close"):
            page.wait_for_selector('li[data-state="running"]')
            page.click(button)
            page.until("document.querySelector('#live').textContent.includes('Working. ')")
            assert page.locator('li[data-state="running"]').count() == 1
            page.evaluate("document.querySelector('#live').textContent = ''")
    answers[:] = [{"json": {"id": "job", "status": "canceled"}}]
    page.click("#cancel")
    page.wait_for_selector('li[data-state="canceled"]')
    page.click("#cards .close")
    assert page.locator("#cards li").count() == 0
    page.console_errors.clear()


def test_two_tabs_share_their_list(page: WatchedPage) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    enlarge(page)
    other.wait_for_selector('li[data-state="succeeded"]')
    other.evaluate(
        """() => {
          const key = Object.keys(localStorage).find(name => name.startsWith('enlarger.card.'));
          const newValue = localStorage[key].replace('"succeeded"', '"running"'); // of a tab that is behind
          window.dispatchEvent(new StorageEvent('storage', { key, newValue }));
        }"""
    )
    assert other.locator('li[data-state="succeeded"]').count() == 1
    other.click("#clear")
    page.until("document.querySelectorAll('#cards li').length === 0")


def test_a_large_result_opens_in_its_own_pixels_where_most_is_to_be_seen(page: WatchedPage) -> None:
    image = Image.new("RGB", (480, 400), (90, 90, 90))
    image.paste(Image.open(io.BytesIO(photo(60, 60))), (420, 0))
    enlarge(page, data=png(image))
    page.until("document.querySelector('#zoom-now').textContent === '100 %'")
    page.until("/translate\\((-\\d\\d)/.test(document.querySelector('#after').style.transform)")
    assert page.is_hidden("#glass")
    page.click("#loupe")
    page.hover("#view")
    assert page.is_visible("#glass") and page.violations() == []


def test_a_phone_has_its_main_button_in_sight_and_no_words_of_mouse_or_keys(browser: Any, service: Served) -> None:
    with tab(browser, service.url, 360, 640, has_touch=True, is_mobile=True) as page:
        page.open()
        assert page.inner_text("#empty-lead") == "Choose a picture"
        page.drop({"photo.png": photo()})
        page.wait_for_selector('li[data-state="ready"]')
        box = page.locator("#go").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 640
        page.click("#tab-inpaint")
        assert page.inner_text("#mask-keys") == "Paint over what should change."


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1280, "dark")])
def test_every_state_is_accessible_and_fits(browser: Any, service: Served, width: int, scheme: str) -> None:
    with tab(browser, service.url, width, 740, color_scheme=scheme, reduced_motion="reduce") as page:
        page.open()

        def sound(state: str) -> None:
            assert page.violations() == [], state
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state

        sound("empty")
        page.click("#theme")
        page.click("#theme")
        page.click("#theme")
        enlarge(page)
        sound("compare")
        page.click("#tab-inpaint")
        page.drop({"mask.png": photo(64, 64)})
        page.wait_for_selector("#painter:visible")
        sound("mask")
        slow(page)
        page.wait_for_selector("#working:visible")
        sound("working")
        page.click("#cancel")
        sound("canceled")
        assert page.console_errors == [] and page.external_urls == []


def test_a_task_without_a_model_says_how_to_add_one(page: WatchedPage, service: Served) -> None:
    found = httpx2.get(f"{service.url}/v1/models").json()
    bundled = found | {"data": [one for one in found["data"] if one["id"] == "bundled"]}
    page.route("**/v1/models", lambda route: route.fulfill(json=bundled))
    page.open()
    page.click("#tab-inpaint")
    assert "Repair needs a Stable Diffusion model" in page.inner_text("#missing")
    assert page.inner_text("#missing-code") == "enlarger pull sd15\nenlarger serve --model sd=sd15"
    assert page.is_disabled("#go") and page.violations() == []


def test_everything_is_reached_by_the_tab_key(page: WatchedPage) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    reached: list[str] = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"theme", "tab-upscale", "choose", "model", "detail"} <= set(reached) and "go" not in reached
    assert page.is_disabled("#go")  # nothing to enlarge yet
    page.focus("#tab-upscale")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-inpaint", "aria-selected") == "true"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.id") == "tab-generate"
