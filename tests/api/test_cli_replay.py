"""Pictures say what made them; `inspect` shows it, and `replay` makes the same bytes again, or says why not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import enlarger
from enlarger.cli.replay import _difference, replay  # pyright: ignore[reportPrivateUsage]
from enlarger.errors import InputError
from enlarger.image.deep import DeepImage
from enlarger.image.encode import save_image
from enlarger.image.generation import SOURCE_TYPES, read_metadata
from enlarger.image.metadata import read_file_metadata
from tests.support import command, tiny, tiny_depth, tiny_x4
from tests.support.pictures import texture

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
pytestmark = pytest.mark.filterwarnings("always::UserWarning")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    return command.call(monkeypatch, capsys, tmp_path, command.Fake())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[0x010F], exif[0x8298] = "a maker", "somebody"
    Image.fromarray(texture(32, 32)).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300))
    DeepImage.from_samples(texture(12, 10, 4).astype(np.uint16) * 250).save(tmp_path / "deep.png")
    Image.fromarray(texture(32, 32, 1)).save(tmp_path / "mask.png")
    Image.fromarray(texture(12, 10, 4)).save(tmp_path / "clear.png")
    Image.fromarray(texture(12, 10, 4)[..., :3]).convert("RGBA").save(tmp_path / "opaque.png")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a cat")
    texts.add_text("workflow", "{}")
    Image.fromarray(texture(12, 10)).save(tmp_path / "told.png", pnginfo=texts)
    Image.fromarray(texture(12, 10)).save(tmp_path / "told.jpg", comment="a hill")
    return tmp_path / "a.jpg"


MADE = {  # 24 pictures: what is asked for, and the files that it makes
    "plain": (("upscale", "a.jpg", "-o", "1.png"), ("1.png",)),
    "jpeg": (("upscale", "a.jpg", "-o", "1.jpg", "--quality", "80"), ("1.jpg",)),
    "webp": (("upscale", "a.jpg", "-o", "1.webp", "--detail", "1"), ("1.webp",)),
    "tiff": (("upscale", "a.jpg", "-o", "1.tif", "--size", "50x50"), ("1.tif",)),
    "deep": (("upscale", "deep.png", "-o", "1.png", "--by", "1.5"), ("1.png",)),
    "deep tiff": (("upscale", "deep.png", "-o", "1.tif", "--restore", "0.5"), ("1.tif",)),
    "texts": (("upscale", "told.png", "-o", "1.png"), ("1.png",)),
    "a comment": (("upscale", "told.jpg", "-o", "1.jpg"), ("1.jpg",)),
    "place": (("upscale", "a.jpg", "-o", "1.png", "--strip", "gps"), ("1.png",)),
    "background": (("upscale", "clear.png", "-o", "1.jpg", "--background", "#102030"), ("1.jpg",)),
    "opaque": (("upscale", "opaque.png", "-o", "1.jpg"), ("1.jpg",)),
    "x2": (("upscale", "a.jpg", "-o", "1.png", "--steps", "1", "--count", "2"), ("1-1.png", "1-2.png")),
    "x4": (("upscale", "a.jpg", "-o", "1.png", "--steps", "1", "--prompt", "a boat & <b>"), ("1.png",)),
    "generate": (
        ("generate", "a", "--steps", "2", "--count", "4", "-o", "1.png"), ("1-1.png", "1-2.png", "1-3.png", "1-4.png"),
    ),
    "prompts": (("generate", "a", "b", "--seed", "0", "--steps", "2", "-o", "out"), ("out/a-0.png", "out/b-1.png")),
    "refine": (("refine", "a.jpg", "--steps", "4", "-o", "1.png", "--count", "2"), ("1-1.png", "1-2.png")),
    "inpaint": (("inpaint", "a.jpg", "--mask", "mask.png", "--steps", "2", "-o", "1.png"), ("1.png",)),
    "depth": (("depth", "a.jpg", "--depth", "mask.png", "--steps", "4", "-o", "1.png"), ("1.png",)),
}  # fmt: skip
MODELS = {
    "x2": tiny.x2_folder, "x4": tiny_x4.x4_folder, "generate": tiny.sd1_folder, "prompts": tiny.sd1_folder,
    "refine": tiny.sd1_folder, "inpaint": tiny.inpaint_folder, "depth": tiny_depth.depth_folder,
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_pictures_are_made_again_byte_for_byte(call: Any, photo: Path, name: str) -> None:
    arguments, files = MADE[name]
    model = ("--model", MODELS[name]()) if name in MODELS else ()
    status, _, err = call(*arguments, *model)
    assert status == 0, err
    for file in files:
        status, out, err = call("replay", file)
        assert status == 0 and out == f"{file}: the same {Path(file).stat().st_size:,} bytes\n", (out, err)


def test_where_copies_would_be_the_same_one_is_made(call: Any, photo: Path) -> None:
    status, out, err = call("upscale", "a.jpg", "--count", "3")
    assert (status, out) == (0, "a-x2.png\n") and "a.jpg: note: " in err and "3" in err
    status, out, err = call("upscale", "a.jpg", "--count", "3")
    assert status == 0 and "was made by the same command before" in err


def test_what_cannot_be_made_again_says_why(call: Any, photo: Path, tmp_path: Path) -> None:
    call("upscale", "a.jpg", "-o", "out/b.png")
    assert call("replay", "a.jpg")[2] == (
        "error: a.jpg: says nothing of how it was made, expected a picture of enlarger's with its metadata\n"
    )
    shutil.move("a.jpg", tmp_path / "moved")
    assert "was made of a.jpg, which is not beside it; give --input" in call("replay", "out/b.png")[2]
    Image.fromarray(texture(10, 10)).save("a.jpg")
    assert "was made of another a.jpg than" in call("replay", "out/b.png")[2]
    status, out, _ = call("replay", "out/b.png", "--input", "moved")
    assert status == 0 and out.startswith("out/b.png: the same")


def test_other_pixels_are_counted(call: Any, photo: Path) -> None:
    call("upscale", "a.jpg", "-o", "b.png")
    with Image.open("b.png") as image:
        metadata = read_metadata(image)
    assert metadata is not None
    metadata["options"]["detail"] = 1.0
    enlarger.image.encode.save_image(enlarger.upscale("a.jpg").image, "c.png", generation=metadata)
    status, out, _ = call("replay", "c.png", "-o", "d.png")
    assert status == 1 and " pixels differ, by at most " in out and Path("d.png").exists()


@pytest.mark.parametrize("option", ["--tone-map", "--salvage"])
def test_what_was_read_specially_is_read_so_again(call: Any, tmp_path: Path, option: str) -> None:
    if option == "--tone-map":
        Image.fromarray(texture(9, 8, 1).astype(np.float32) / 20).save("a.tif")
    else:
        Image.fromarray(texture(32, 40)).save("whole.png")
        data = Path("whole.png").read_bytes()
        Path("a.tif").write_bytes(data[: len(data) * 3 // 4])
    status, _, err = call("upscale", "a.tif", option, "-o", "b.png")
    assert status == 0, err
    status, out, err = call("replay", "b.png")
    assert status == 0 and out.startswith("b.png: the same "), (out, err)


def test_differences_below_an_8_bit_step_are_counted() -> None:
    samples = np.full((3, 4, 3), 25700, np.uint16)
    other = samples.copy()
    other[1, 2, 0] += 5
    first, second = DeepImage.from_samples(samples), DeepImage.from_samples(other)
    assert _difference(first, second) == "1 pixels differ, by at most 5"
    assert _difference(first, first) == "the pixels are equal"


@pytest.mark.parametrize("output", ["a.jpg", "b.png"])
def test_neither_the_picture_nor_its_input_is_written_over(call: Any, photo: Path, output: str) -> None:
    call("upscale", "a.jpg", "-o", "b.png")
    before = Path(output).read_bytes()
    status, out, err = call("replay", "b.png", "-o", f"../{photo.parent.name}/{output}", "--overwrite")
    assert (status, out, Path(output).read_bytes()) == (1, "", before)
    assert f" is {output} itself, which the picture is made of or compared with" in err


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_every_kind_of_file_says_what_made_it(call: Any, photo: Path, suffix: str) -> None:
    assert call("upscale", "a.jpg", "-o", f"b.{suffix}")[0] == 0
    status, out, _ = call("inspect", f"b.{suffix}", "--json")
    found = json.loads(out)
    assert status == 0 and found["source"] == "algorithmicallyEnhanced"
    assert found["generation"]["input"]["file"] == "a.jpg" and found["generation"]["options"]["by"] == 2.0
    assert "Version: enlarger" in found["text"] and "EXIF" in found["metadata"]
    with Image.open(f"b.{suffix}") as image:
        about = read_file_metadata(image)
        assert image.getexif()[0x8298] == "somebody" and SOURCE_TYPES.encode() in about["xmp"]
    assert "task: upscale" in call("inspect", f"b.{suffix}")[1]


def test_what_is_made_again_is_named_as_the_kind_that_it_is(tmp_path: Path) -> None:
    tiny.picture(8, 8).save(tmp_path / "in.png")
    made = save_image(tiny.picture(8, 8), tmp_path / "a.png", generation={"enlarger": "1", "task": "upscale",
        "options": {}, "seeds": [0], "model": "bundled", "input": {"file": "in.png"}})  # fmt: skip
    with pytest.raises(InputError, match=r"b\.jpg: JPEG, but .*a\.png is PNG and so is what is made; name it so"):
        replay(made, output=tmp_path / "b.jpg")


@pytest.mark.parametrize(("option", "value"), [("size", "50x50"), ("long-edge", "50"), ("megapixels", "0.01")])
def test_a_factor_is_said_only_where_it_counts(call: Any, photo: Path, option: str, value: str) -> None:
    call("upscale", "a.jpg", "-o", "b.png", f"--{option}", value)
    options = json.loads(call("inspect", "b.png", "--json")[1])["generation"]["options"]
    assert option.replace("-", "_") in options and "by" not in options
    assert call("replay", "b.png")[:2] == (0, f"b.png: the same {Path('b.png').stat().st_size:,} bytes\n")


def test_nothing_is_said_where_all_is_stripped(call: Any, photo: Path) -> None:
    call("upscale", "a.jpg", "-o", "b.png", "--strip", "all")
    with Image.open("b.png") as image:
        image.load()
        assert image.info == {} and read_metadata(image) is None


def test_the_library_says_what_made_a_picture(photo: Path, tmp_path: Path) -> None:
    result = enlarger.generate(["a", "b"], model=tiny.sd1_folder(), steps=2, seed=3)
    assert [(one["options"]["prompt"], one["seeds"]) for one in result.generation] == [("a", [3]), ("b", [4])]
    twice = enlarger.generate(["a", "b"], model=tiny.sd1_folder(), steps=2, count=2, negative=["c", "d"]).generation
    assert [(one["options"]["prompt"], one["options"]["negative"]) for one in twice] == [("a", "c")] * 2 + [
        ("b", "d")
    ] * 2
    paths = result.save(tmp_path / "c.png")
    for path, prompt in zip(paths, "ab", strict=True):
        with Image.open(path) as image:
            found = read_metadata(image)
            assert found is not None and found["options"]["prompt"] == prompt and found["task"] == "generate"
            assert image.info["parameters"].startswith(f"{prompt}\nSteps: 2, Sampler: ")


def test_a_comment_of_the_input_is_kept(call: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0mine"
    Image.fromarray(texture(12, 12)).save(tmp_path / "a.jpg", exif=exif)
    call("upscale", "a.jpg", "-o", "b.jpg")
    with Image.open("b.jpg") as image:
        assert image.getexif().get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0mine" and read_metadata(image) is not None
