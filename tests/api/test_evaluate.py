"""`enlarger evaluate upscale`: sets, rows and the contact sheet, with an upscaler that is plain interpolation."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from enlarger.checkpoint.families import KINDS
from enlarger.errors import InputError
from enlarger.evaluate import upscale as evaluation
from enlarger.requests import UpscaleRequest
from enlarger.tasks.result import Result


class Interpolation:
    """Stands for a loaded model: Pillow's bicubic, whatever the options."""

    kind = KINDS["x2"]

    def __call__(self, request: UpscaleRequest) -> Result:
        image = request.image
        return Result((image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC),), (0,), "test")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evaluation, "load_upscaler", lambda model, device: Interpolation())
    draw = np.random.default_rng(0)
    for name, size in (("one/a", (41, 60)), ("one/b", (52, 44)), ("two/c", (180, 190))):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8))
        small.resize((size[1] // 2 * 2, size[0]), Image.Resampling.BICUBIC).save(path)
    return tmp_path


def test_every_folder_is_a_set_with_a_row_for_each_method(folder: Path) -> None:
    table = evaluation.evaluate_upscale(folder, steps=(3, 5))
    assert [(r["set"], r["method"]) for r in table.rows] == [
        (name, method) for name in ("one", "two") for method in ("bicubic", "Lanczos", "3 steps", "5 steps")
    ]
    assert [r["pictures"] for r in table.rows] == [2] * 4 + [1] * 4
    assert json.loads(json.dumps(table.rows)) == list(table.rows)


def test_a_model_that_interpolates_has_the_figures_of_interpolation(folder: Path) -> None:
    rows = {(r["set"], r["method"]): r for r in evaluation.evaluate_upscale(folder, steps=(3,)).rows}
    for name in ("one", "two"):
        for figure in ("psnr", "psnr_y", "ssim", "ms_ssim", "gmsd", "largest", "mean"):
            assert rows[name, "3 steps"][figure] == rows[name, "bicubic"][figure]
    assert rows["one", "bicubic"]["ms_ssim"] is None and rows["two", "bicubic"]["ms_ssim"] is not None


def test_the_table_is_markdown_and_the_sheet_a_picture(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    lines = str(evaluation.evaluate_upscale(folder, steps=(3,), sheet=sheet)).splitlines()
    assert len(lines) == 2 + 6 and len({line.count("|") for line in lines}) == 1
    with Image.open(sheet) as image:
        assert image.width > 4 * 44


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pictures found; give a folder of photos"):
        evaluation.evaluate_upscale(tmp_path)
