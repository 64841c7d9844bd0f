"""The snippets of the upscale service's documentation run as they are, against `enlarger serve` on its own port."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.service import Served, running

DOCUMENT = Path(__file__).parents[1] / "data" / "documents" / "upscale-service.md"
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL))
SIZE = (48, 32)


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with running(models=(), port=8997) as served:
        yield served


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Image.effect_noise(SIZE, 60).convert("RGB").save(tmp_path / "iron_man_image.png")
    return tmp_path


@pytest.mark.parametrize("command", [[sys.executable, "-c", BLOCKS["python"]], ["bash", "-ec", BLOCKS["bash"]]])
def test_a_snippet_gives_a_picture_of_twice_the_size(service: Served, place: Path, command: list[str]) -> None:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(place / "iron_man_highres.png") as image:
        assert (image.format, image.size) == ("PNG", (2 * SIZE[0], 2 * SIZE[1]))


def test_the_curl_of_localai_gives_a_url_with_the_picture(service: Served, place: Path) -> None:
    script = (
        "url=$(curl -s http://localhost:8997/v1/images/upscale -F model=bundled -F image=@iron_man_image.png -F scale=4"
        " | jq -er '.data[0].url'); curl -sf \"$url\" -o large.png"
    )
    done = subprocess.run(["bash", "-ec", script], cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(place / "large.png") as image:
        assert image.size == (4 * SIZE[0], 4 * SIZE[1])
