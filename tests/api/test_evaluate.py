"""`enlarger evaluate upscale`: sets, rows and the contact sheet, with an upscaler that is plain interpolation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger.checkpoint.families import KINDS
from enlarger.errors import InputError
from enlarger.evaluate import upscale as evaluation
from enlarger.requests import UpscaleRequest
from enlarger.tasks.results.result import Result


class Interpolation:
    """Stands for a loaded model: Pillow's bicubic, whatever the options."""

    kind = KINDS["x2"]

    def __call__(self, request: UpscaleRequest) -> Result:
        image = request.image
        return Result((image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC),), (0,), "test")


def evaluate(folder: Path, **options: Any) -> evaluation.EvaluationTable:
    return evaluation.evaluate_upscale(evaluation.Evaluation(folder, **options))


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
    table = evaluate(folder, steps=(3, 5))
    assert [(r["set"], r["method"]) for r in table.rows] == [
        (name, method) for name in ("one", "two") for method in ("bicubic", "Lanczos", "3 steps", "5 steps")
    ]
    assert [r["pictures"] for r in table.rows] == [2] * 4 + [1] * 4
    assert json.loads(json.dumps(table.rows)) == list(table.rows)


def test_a_model_that_interpolates_has_the_figures_of_interpolation(folder: Path) -> None:
    rows = {(r["set"], r["method"]): r for r in evaluate(folder, steps=(3,)).rows}
    for name in ("one", "two"):
        for figure in (
            "psnr",
            "psnr_y",
            "ssim",
            "ms_ssim",
            "gmsd",
            "fine_energy",
            "fine_correlation",
            "largest",
            "mean",
        ):
            assert rows[name, "3 steps"][figure] == rows[name, "bicubic"][figure]
    assert rows["one", "bicubic"]["ms_ssim"] is None and rows["two", "bicubic"]["ms_ssim"] is not None


def test_the_table_is_markdown_and_the_sheet_a_picture(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    lines = str(evaluate(folder, steps=(3,), sheet=sheet)).splitlines()
    assert len(lines) == 2 + 6 and len({line.count("|") for line in lines}) == 1
    with Image.open(sheet) as image:
        assert image.width > 4 * 44


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pictures found; give a folder of photos"):
        evaluate(tmp_path)


def test_damaged_inputs_are_sets_of_their_own(folder: Path) -> None:
    rows = evaluate(folder / "one", steps=(3,), degraded=("jpeg40", "phone")).rows
    by_set = {r["set"]: r for r in rows if r["method"] == "3 steps"}
    assert list(by_set) == ["one", "one jpeg40", "one phone"]
    assert all(by_set["one"]["psnr"] > by_set[f"one {kind}"]["psnr"] for kind in ("jpeg40", "phone"))
    again, other = (
        evaluate(folder / "one", steps=(3,), degraded=("phone",), seed=seed).rows[-1]["psnr"] for seed in (0, 1)
    )
    assert again == by_set["one phone"]["psnr"] and other != again
    with pytest.raises(InputError, match=r"no degradation is called 'rain'; there are jpeg40, jpeg70, phone, blur"):
        evaluate(folder, degraded=("rain",))


def test_other_programs_stand_beside(folder: Path, tmp_path: Path) -> None:
    kept, theirs = tmp_path / "kept", tmp_path / "theirs"
    evaluate(folder / "one", steps=(3,), degraded=("blur",), keep=kept)
    assert sorted(p.name for p in kept.iterdir()) == ["3-steps", "Lanczos", "bicubic", "input"]
    for path in (kept / "input").rglob("*.png"):
        with Image.open(path) as small:
            made = small.resize((2 * small.width, 2 * small.height), Image.Resampling.BOX)
        place = theirs / "boxes" / path.relative_to(kept / "input")
        place.parent.mkdir(parents=True, exist_ok=True)
        made.save(place)
    table = evaluate(folder / "one", steps=(3,), degraded=("blur",), beside=theirs, sheet=tmp_path / "s.png")
    found = {r["set"]: r for r in table.rows if r["method"] == "boxes"}
    assert list(found) == ["one", "one blur"] and found["one"]["seconds"] is None and found["one"]["psnr"] > 10
    assert "| one (2) | boxes |" in str(table)
    made.save(theirs / "boxes" / "one" / "a.png")
    with pytest.raises(InputError, match=r"a.png: is \(\d+, \d+\), expected \(\d+, \d+\), twice its input"):
        evaluate(folder / "one", steps=(3,), beside=theirs)


def test_the_bundled_model_takes_no_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(InputError, match="steps are given, but the bundled model takes none"):
        evaluate(folder / "two", steps=(2,))
