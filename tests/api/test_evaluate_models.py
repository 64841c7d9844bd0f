"""`enlarger evaluate generate` and `inpaint` on tiny models: the sweep, going on, refusals, figures and the plot."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from enlarger.cli.main import app
from enlarger.errors import InputError
from enlarger.evaluate import generate as generating
from enlarger.evaluate import inpaint as inpainting
from enlarger.evaluate.generate import FeatureFiles, GenerateEvaluation, curve_names, evaluate_generate, read_prompts
from enlarger.evaluate.inpaint import InpaintEvaluation, evaluate_inpaint
from enlarger.evaluate.plot import draw_curves
from enlarger.text.weights import parse_prompt_attention
from tests.support.tiny import inpaint_folder, one_thread, picture, sd1_folder

threads = pytest.fixture(autouse=True, scope="module")(one_thread)


class Colours:
    """Stands for Inception: the mean and the spread of each channel."""

    def __call__(self, pictures: Any, seen: Any = lambda count: None) -> torch.Tensor:
        from enlarger.image.picture import read_picture

        planes = [read_picture(one).colour.flatten(1) for one in pictures]
        return torch.stack([torch.cat([plane.mean(1), plane.std(1)]) for plane in planes])


class Brightness:
    """Stands for CLIP: how bright a picture is."""

    def __call__(self, pictures: Any, texts: Any, seen: Any = lambda count: None) -> torch.Tensor:
        return Colours()(pictures)[:, :3].mean(1) / 4 + 0.2


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (generating, inpainting):
        monkeypatch.setattr(module, "read_inception", lambda *_, **__: Colours())
    monkeypatch.setattr(generating, "read_clip", lambda *_: Brightness())
    (tmp_path / "real").mkdir()
    for i in range(3):
        picture(70, 90, seed=i).save(tmp_path / "real" / f"{i}.png")
    (tmp_path / "real" / "0.txt").write_text("a cat")
    (tmp_path / "prompts.txt").write_text("\ufeffa cat\n\n  a dog \n", "utf-8")
    return tmp_path


def wanted(data: Path, **changed: Any) -> GenerateEvaluation:
    stated: dict[str, Any] = {
        "guidance": (1.5, 3.0), "steps": 2, "reference": data / "real", "size": (64, 64), "device": "cpu",
        "files": FeatureFiles(Path("inception"), Path("clip")),
    }  # fmt: skip
    return GenerateEvaluation(data / "prompts.txt", sd1_folder(), data / "out", **stated | changed)


def test_the_sweep_has_a_row_for_each_scale_and_a_plot(data: Path) -> None:
    found = evaluate_generate(wanted(data))
    assert [row["guidance"] for row in found.rows] == [1.5, 3.0]
    assert all(isinstance(row[name], float) for row in found.rows for name in ("fid", "kid", "clip_score"))
    document = json.loads((data / "out/results.json").read_text())
    assert document["rows"] == [dict(row) for row in found.rows] and document["settings"]["steps"] == 2
    with (data / "out/results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["fid"]) for row in rows] == [row["fid"] for row in found.rows]
    with Image.open(data / "out/plot.png") as plot:
        assert plot.getcolors(1 << 16) is not None
    assert len(list((data / "out").rglob("guidance-*/*.png"))) == 4


def test_what_is_there_is_not_made_again_and_scales_can_be_added(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_generate(wanted(data))
    kept, lost = data / "out/guidance-3/00000.png", data / "out/guidance-1.5/00001.png"
    before, same = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    evaluate_generate(wanted(data, guidance=(1.5, 3.0, 8.0)))
    assert kept.stat().st_mtime_ns == before and lost.read_bytes() == same
    monkeypatch.setattr(generating, "load_generator", lambda *_: pytest.fail("all pictures are there"))
    evaluate_generate(wanted(data, guidance=(1.5, 3.0, 8.0)))
    with pytest.raises(InputError, match="its pictures were made with steps 2, not 3; give another folder"):
        evaluate_generate(wanted(data, steps=3))


def test_an_earlier_evaluation_is_drawn_beside(data: Path) -> None:
    evaluate_generate(wanted(data))
    alone = Image.open(data / "out/plot.png").convert("RGB")
    (data / "out").rename(data / "earlier")
    evaluate_generate(wanted(data, beside=(data / "earlier",), seed=3))
    assert Image.open(data / "out/plot.png").convert("RGB").tobytes() != alone.tobytes()


def test_curves_of_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "sweep", tmp_path / "b" / "sweep", tmp_path / "c"]
    assert curve_names([tmp_path / "sweep", places[2]]) == ["sweep", "c"]
    assert curve_names(places[:2]) == ["a/sweep", "b/sweep"]
    with pytest.raises(InputError, match="is to be drawn twice, or is the result itself"):
        curve_names([places[0], places[1] / ".." / ".." / "a" / "sweep"])


@pytest.mark.parametrize(
    ("changed", "text"),
    (
        ({"files": FeatureFiles()}, "nothing would be measured: give Inception's weights"),
        ({"files": FeatureFiles(Path("x"))}, "a folder of real pictures is missing"),
        ({"guidance": ()}, "no guidance scales are given"),
        ({"guidance": (1000.0,)}, "guidance is 1000"),
        ({"solver": "none such"}, "none such"),
    ),
    ids=("no networks", "no reference", "no scales", "a scale too high", "no solver"),
)
def test_what_cannot_be_measured_is_said_before_the_work(data: Path, changed: dict[str, Any], text: str) -> None:
    if "a folder" in text:
        changed = changed | {"reference": None}
    with pytest.raises(InputError, match=text):
        evaluate_generate(wanted(data, **changed))
    assert not (data / "out").exists()


def test_prompts_are_lines_and_some_of_them_are_drawn_by_the_seed(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("\n".join(f"prompt {i}" for i in range(50)))
    assert len(read_prompts(file)) == 50
    drawn = read_prompts(file, 10, 1)
    assert len(set(drawn)) == 10 and drawn == read_prompts(file, 10, 1) != read_prompts(file, 10, 2)
    file.write_text(" \n")
    with pytest.raises(InputError, match="holds no prompts; write one into each line"):
        read_prompts(file)
    with pytest.raises(InputError, match="give a file with one prompt a line"):
        read_prompts(tmp_path)


def repainted(data: Path, **changed: Any) -> inpainting.EvaluationResults:
    stated: dict[str, Any] = {"steps": 2, "device": "cpu"}
    return evaluate_inpaint(InpaintEvaluation(data / "real", inpaint_folder(), data / "painted", **stated | changed))


def test_inpainting_is_measured_under_the_mask_and_beside_it(data: Path) -> None:
    (row,) = repainted(data, files=FeatureFiles(Path("inception"))).rows
    assert row["psnr_unmasked"] == float("inf") and float(row["psnr_masked"] or 0) < 30
    assert 0.01 < float(row["coverage"] or 0) < 0.95 and isinstance(row["fid"], float)
    assert json.loads((data / "painted/results.json").read_text())["rows"][0]["psnr_unmasked"] == "inf"
    before = {path: path.stat().st_mtime_ns for path in (data / "painted").rglob("*/*.png")}
    repainted(data, guidance=(7.5, 2.0))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    (other,) = evaluate_inpaint(
        InpaintEvaluation(data / "real", inpaint_folder(), data / "plain", steps=2, preserve="none", device="cpu")
    ).rows
    assert float(other["psnr_unmasked"] or 0) < 60


def test_masks_of_a_folder_are_those_of_the_pictures_names(data: Path) -> None:
    (data / "masks").mkdir()
    for i in range(3):
        mask = Image.new("L", (70, 90))
        mask.paste(255, (10, 10, 45, 45))
        mask.save(data / "masks" / f"{i}.png")
    (row,) = repainted(data, masks=data / "masks").rows
    assert row["coverage"] == pytest.approx(35 * 35 / 6300)
    (data / "masks/1.png").unlink()
    with pytest.raises(InputError, match="no mask for 1; name each mask as its picture"):
        repainted(data, masks=data / "masks")


def test_a_folder_that_holds_anything_else_is_left_as_it_is(data: Path) -> None:
    for name in ("results.csv", "guidance-3"):
        (data / "out").mkdir()
        (data / "out" / name).write_text("mine")
        with pytest.raises(InputError, match=rf"out: holds {name} and no settings\.json, expected a new folder"):
            evaluate_generate(wanted(data))
        assert (data / "out" / name).read_text() == "mine" and len(list((data / "out").iterdir())) == 1
        (data / "out" / name).unlink()
        (data / "out").rmdir()
    (data / "out").write_text("a file")
    with pytest.raises(InputError, match="out: cannot be a folder of results"):
        evaluate_generate(wanted(data))


@pytest.mark.parametrize("kind", ("weights", "config", "precision"))
def test_pictures_of_another_model_in_the_same_place_are_not_measured(data: Path, kind: str) -> None:
    model = data / "model"
    shutil.copytree(sd1_folder(), model)
    stated = GenerateEvaluation(
        data / "prompts.txt", model, data / "out", FeatureFiles(clip=Path("clip")), guidance=(2.0,), steps=1,
        size=(64, 64), device="cpu",
    )  # fmt: skip
    evaluate_generate(stated)
    evaluate_generate(stated)
    weights = next((model / "unet").glob("*.safetensors"))
    if kind == "weights":
        os.utime(weights, ns=(1, 1))
    elif kind == "config":
        config = model / "scheduler/scheduler_config.json"
        config.write_text(config.read_text() + "\n")
    else:
        stated = dataclasses.replace(stated, precision="bfloat16")
    name = "precision 'float32', not 'bfloat16'" if kind == "precision" else "model_digest"
    with pytest.raises(InputError, match=name):
        evaluate_generate(stated)


@pytest.mark.parametrize("kind", ("picture", "prompt", "mask"))
def test_results_of_other_pictures_prompts_or_masks_are_not_measured(data: Path, kind: str) -> None:
    (data / "masks").mkdir()
    for i in range(3):
        Image.new("L", (70, 90), 255).save(data / "masks" / f"{i}.png")
    repainted(data, masks=data / "masks", steps=1)
    if kind == "picture":
        picture(70, 90, seed=7).save(data / "real" / "1.png")
    elif kind == "prompt":
        (data / "real" / "1.txt").write_text("a dog")
    else:
        changed = Image.new("L", (70, 90))
        changed.paste(255, (0, 0, 40, 40))
        changed.save(data / "masks" / "1.png")
    with pytest.raises(InputError, match=f"painted: its pictures were made with {kind}s"):
        repainted(data, masks=data / "masks", steps=1)


def test_each_picture_has_its_own_seed_and_captions_are_no_weights(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "real" / "0.txt").write_text("a (red:3) [cat] \\")
    (data / "prompts.txt").write_text("a (red:3) [cat] \\\na dog")
    seen = list[Any]()

    def recorded(request: Any) -> Any:
        seen.append(request)
        return SimpleNamespace(image=picture(70, 90))

    def load(*_: Any) -> Any:
        return recorded

    monkeypatch.setattr(inpainting, "load_inpainter", load)
    monkeypatch.setattr(generating, "load_generator", load)
    repainted(data, seed=5)
    evaluate_generate(wanted(data, guidance=(2.0,), seed=5))
    assert [request.seed for request in seen] == [5, 6, 7, 5, 6]
    for request in (seen[0], seen[3]):
        parts = parse_prompt_attention(request.prompt)
        assert [(part.text, part.weight) for part in parts] == [("a (red:3) [cat] \\", 1.0)]


def test_a_prompt_that_is_no_text_is_named(data: Path) -> None:
    (data / "real" / "0.txt").write_bytes(b"\xff\xfe\x00caf\xe9")
    with pytest.raises(InputError, match=r"0\.txt: cannot be read as text in UTF-8"):
        repainted(data)
    (data / "prompts.txt").write_text("one\u2028line\ntwo", "utf-8")
    assert len(read_prompts(data / "prompts.txt")) == 2


def test_pictures_whose_results_would_have_one_name_are_refused(data: Path) -> None:
    picture(70, 90, seed=9).save(data / "real" / "0.webp")
    with pytest.raises(InputError, match=r"2 pictures would be 0\.png; rename all but one"):
        repainted(data)


def test_fid_of_one_picture_is_refused_before_the_work(data: Path) -> None:
    (data / "prompts.txt").write_text("alone")
    with pytest.raises(InputError, match="holds one prompt, expected 2 or more for FID"):
        evaluate_generate(wanted(data))
    for i in (1, 2):
        (data / "real" / f"{i}.png").unlink()
    with pytest.raises(InputError, match="holds one picture, expected 2 or more for FID"):
        repainted(data, files=FeatureFiles(Path("inception")))


def test_a_reference_that_is_no_picture_is_refused_before_the_work(data: Path) -> None:
    (data / "real" / "9.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"9\.png"):
        evaluate_generate(wanted(data))
    assert not (data / "out").exists()


def test_scales_that_differ_in_the_seventh_digit_have_folders_of_their_own() -> None:
    assert generating.guidance_folder(Path(), 2.0) != generating.guidance_folder(Path(), 2.0000001)


def test_the_command_prints_a_table_and_json(data: Path) -> None:
    stated = ["--model", str(sd1_folder()), "--out", str(data / "out"), "--steps", "2", "--guidance", "2",
              "--guidance", "3", "--size", "64x64", "--reference", str(data / "real"), "--inception", "x",
              "--clip", "y",
              "--device", "cpu"]  # fmt: skip
    shown = CliRunner().invoke(app, ["evaluate", "generate", str(data / "prompts.txt"), *stated])
    assert shown.exit_code == 0, shown.output
    assert "| guidance | pictures | fid" in shown.stdout
    parsed = CliRunner().invoke(app, ["evaluate", "generate", str(data / "prompts.txt"), *stated, "--json"])
    assert [row["guidance"] for row in json.loads(parsed.stdout)] == [2, 3]
    painted = ["--model", str(inpaint_folder()), "--out", str(data / "p"), "--steps", "1", "--device", "cpu", "--json"]
    parsed = CliRunner().invoke(app, ["evaluate", "inpaint", str(data / "real"), *painted])
    assert parsed.exit_code == 0, parsed.output
    assert json.loads(parsed.stdout)[0]["pictures"] == 3


def test_a_plot_of_one_point_has_axes_too() -> None:
    assert draw_curves({"a": [(0.2, 30.0, "1.5")]}, "CLIP score", "FID").size == (760, 560)
