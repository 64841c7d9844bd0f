"""Training data: folders, metadata, shards, buckets, crops; batches that follow from seed and number."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from enlarger.errors import InputError
from enlarger.image.resize import covering_size
from enlarger.train.data import DataOptions, TrainingBatch, open_dataset
from enlarger.train.data.buckets import bucket_sizes, nearest_bucket
from enlarger.train.data.shards import expand_shards
from enlarger.train.run import Rows
from tests.support.close import assert_close
from tests.support.pictures import texture

SMALL = DataOptions(bucket_step=8)
SIZES = {"a": (40, 40), "b": (20, 60), "c": (60, 20), "d": (33, 47), "e": (64, 64)}  # height, width


def picture(name: str) -> Image.Image:
    height, width = SIZES[name]
    return Image.fromarray(texture(width, height, seed=ord(name)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    (place / "below").mkdir(parents=True)
    for name in SIZES:
        path = place / ("below" if name == "e" else "") / f"{name}.png"
        picture(name).save(path)
        path.with_suffix(".caption" if name == "a" else ".txt").write_text(f"\ufeff picture\n {name} ", "utf-8")
    return place


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(name: str) -> bytes:
    stream = io.BytesIO()
    picture(name).save(stream, "PNG")
    return stream.getvalue()


def first(path: Path | str, count: int, batch: int = 2, seed: int = 0, start: int = 0, options: DataOptions = SMALL):
    return list(islice(open_dataset(path, 32, options).batches(batch, seed, start), count))


def by_caption(batches: Sequence[TrainingBatch]) -> dict[str, torch.Tensor]:
    return {text: x for batch in batches for text, x in zip(batch.captions, batch.pixels, strict=True)}


def same(one: TrainingBatch, other: TrainingBatch) -> bool:
    assert_close(one.pixels, other.pixels, 0)
    fields = ("captions", "original_size", "crop_top_left", "target_size", "keys")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def test_captions_lie_beside_the_pictures(folder: Path) -> None:
    found = {text for batch in first(folder, 12) for text in batch.captions}
    assert found == {f"picture {name}" for name in SIZES}


@pytest.mark.parametrize("name", ("metadata.jsonl", "metadata.csv"))
def test_captions_of_the_image_folder_of_datasets(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    for each in "ab":
        picture(each).save(tmp_path / "sub" / f"{each}.png")
    lines = [{"file_name": "a.png", "text": 'red, "round"'}, {"file_name": "b.png", "text": "blue"}]
    if name.endswith("csv"):
        text = 'file_name,text\na.png,"red, ""round"""\nb.png,blue\n'
    else:
        text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "sub" / name).write_text(text, "utf-8")
    assert {text for batch in first(tmp_path, 6) for text in batch.captions} == {'red, "round"', "blue"}


@pytest.mark.parametrize(
    ("line", "text"),
    (
        ('{"file_name": "../a.png", "text": "x"}', "leads out of the folder"),
        ('{"text": "x"}', "line 1: no file_name"),
        ("[1]", "line 1: found a JSON list, expected an object"),
        ("{", "line 1: no JSON"),
    ),
)
def test_metadata_that_says_nothing_is_refused(tmp_path: Path, line: str, text: str) -> None:
    picture("a").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(InputError, match=text):
        open_dataset(tmp_path, 32, SMALL)


def test_shards_hold_what_a_folder_holds(folder: Path, tmp_path: Path) -> None:
    for number, names in enumerate(("ab", "cde")):
        parts = {f"{n}.png": png(n) for n in names} | {f"{n}.txt": f"picture {n}".encode() for n in names}
        write_shard(tmp_path / f"set-{number:03d}.tar", dict(sorted(parts.items())))
    centred = DataOptions(bucket_step=8, center_crop=True)
    expected = by_caption(first(folder, 12, options=centred))
    for path in (tmp_path / "set-{000..001}.tar", tmp_path / "set-*.tar"):
        found = by_caption(first(path, 12, options=centred))
        assert found.keys() == expected.keys()
        for name, pixels in found.items():
            assert_close(pixels, expected[name], 0)
    write_shard(tmp_path / "one.tar", {"k/x.y.png": png("a"), "k/x.json": b'{"text": "from json"}'})
    assert first(tmp_path / "one.tar", 1)[0].captions == ("from json",) * 2


@pytest.mark.parametrize(
    ("content", "expected"),
    (
        ("null", "none"), ('{"caption": ["one", "two"]}', "one"), ('["one", "two"]', "one"), ('{"text": []}', "none"),
        ('{"tags": "x", "text": null, "prompt": "p"}', "p"), ('{"alt": "named", "text": "usual"}', "named"),
        ('{"alt": null, "text": "usual"}', "usual"), ('" a  b "', "a b"), ('{"text": 5, "caption": "a dog"}', "a dog"),
    ),
)  # fmt: skip
def test_captions_in_the_json_of_a_shard(tmp_path: Path, content: str, expected: str) -> None:
    write_shard(tmp_path / "x.tar", {"a.png": png("a"), "a.json": content.encode()})
    options = DataOptions(bucket_step=8, caption="none", caption_column="alt")
    assert first(tmp_path / "x.tar", 1, batch=1, options=options)[0].captions == (expected,)


def test_a_shard_without_any_caption_is_refused_and_a_caption_that_is_no_text_left_out(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", {"a.png": png("a"), "a.json": b'{"width": 40}'})
    with pytest.raises(InputError, match=r"none of 1 pictures has a caption; .* or a shard's \.json \(text\)"):
        open_dataset(tmp_path / "x.tar", 32, SMALL)
    files = {"a.png": png("a"), "a.json": b'{"text": 5}', "e.png": png("e"), "e.json": b'{"text": "e"}'}
    write_shard(tmp_path / "x.tar", files)
    data = open_dataset(tmp_path / "x.tar", 32, SMALL)
    assert {text for batch in islice(data.batches(1, 0), 4) for text in batch.captions} == {"e"}
    ((_, reason),) = data.skipped.items()
    assert "its caption is 5, expected a text or a list of texts" in reason


def test_captions_in_metadata_are_texts_or_lists_of_them(tmp_path: Path) -> None:
    for each in "abc":
        picture(each).save(tmp_path / f"{each}.png")
    lines = [
        {"file_name": "a.png", "text": ["one", "two"]},
        {"file_name": "b.png", "text": "a\u2028b\u0085c"},
        {"file_name": "c.png", "text": None},
    ]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "metadata.jsonl").write_bytes(text.encode())
    found = {text for batch in first(tmp_path, 6, batch=1) for text in batch.captions}
    assert found == {"one", "a b c", ""}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    (
        ("metadata.csv", 'file_name,text\na.png,"open\n', r"metadata\.csv, after line 1: no CSV"),
        ("metadata.csv", f"file_name,text\na.png,{'x' * 140000}\n", "keep captions under 131,072 characters"),
        ("metadata.csv", f"file_name,text\n{'x' * 300},b\n", "line 2: file_name .* is no name of a file"),
        ("metadata.jsonl", json.dumps({"file_name": "é" * 200, "text": "b"}), "line 1: file_name .* is no name"),
        ("metadata.jsonl", json.dumps({"file_name": "a\0.png", "text": "b"}), "line 1: file_name .* is no name"),
        ("metadata.jsonl", json.dumps({"file_name": "a.png", "text": {"a": 1}}), "line 1: its caption is {'a': 1}"),
        ("metadata.jsonl", json.dumps({"file_name": "a.png", "text": 5}), "line 1: its caption is 5"),
    ),
    ids=("quote", "field", "csv-name", "json-name", "nul", "object", "number"),
)
def test_metadata_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, expected: str) -> None:
    picture("a").save(tmp_path / "a.png")
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(InputError, match=expected):
        open_dataset(tmp_path, 32, SMALL)


def test_braces_and_stars(tmp_path: Path) -> None:
    for name in ("a-08", "a-09", "a-10", "b"):
        (tmp_path / f"{name}.tar").touch()
    assert [p.name for p in expand_shards(f"{tmp_path}/a-{{08..10}}.tar")] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [p.name for p in expand_shards(f"{tmp_path}/{{b,a-08}}.tar")] == ["b.tar", "a-08.tar"]
    for wrong in ("a-{08..11}.tar", "c*.tar"):
        with pytest.raises(InputError, match="no such shard"):
            expand_shards(f"{tmp_path}/{wrong}")


def test_a_batch_follows_from_the_seed_and_its_number(folder: Path) -> None:
    options = DataOptions(bucket_step=8, random_flip=True)
    whole = first(folder, 9, options=options)
    for start in (1, 4, 8):
        assert same(whole[start], first(folder, 1, start=start, options=options)[0])
    assert any(one.captions != other.captions for one, other in zip(whole, first(folder, 9, seed=1), strict=True))


def test_processes_share_the_rows_of_one_batch(folder: Path) -> None:
    data = open_dataset(folder, 32, SMALL)
    whole = next(data.batches(4, 0))
    parts = [next(data.batches(4, 0, rank=rank, world_size=2)) for rank in (0, 1)]
    assert_close(torch.cat([part.pixels for part in parts]), whole.pixels, 0)
    assert parts[0].captions + parts[1].captions == whole.captions
    with pytest.raises(InputError, match="batch is 3, expected a multiple of the 2 processes"):
        next(data.batches(3, 0, world_size=2))


def test_every_picture_is_in_every_epoch(folder: Path) -> None:
    data = open_dataset(folder, 32, SMALL)
    length = data.batches_per_epoch(2)
    for epoch in range(3):
        batches = islice(data.batches(2, 5, epoch * length), length)
        assert {text for batch in batches for text in batch.captions} == {f"picture {name}" for name in SIZES}


def test_a_batch_says_which_pictures_it_holds(folder: Path) -> None:
    batches = first(folder, 12)
    for batch in batches:
        assert tuple(f"picture {Path(name).stem}" for name in batch.names) == batch.captions
    said = {str(Rows(batch, 0, 0, range(2))) for batch in batches}
    assert "2 pictures of 'picture b', 'picture b' (b.png, b.png)" in said


def test_half_of_the_pictures_are_flipped(folder: Path) -> None:
    plain, flipped = (
        first(folder, 60, options=DataOptions(bucket_step=8, center_crop=True, random_flip=flip))
        for flip in (False, True)
    )
    mirrored = [
        not torch.equal(x, y) for one, other in zip(plain, flipped, strict=True)
        for x, y in zip(one.pixels, other.pixels, strict=True)
    ]  # fmt: skip
    assert 0.35 < np.mean(mirrored) < 0.65


def test_buckets_have_the_area_and_step_asked_for() -> None:
    for resolution, step in ((1024, 64), (512, 64), (32, 8)):
        sizes = bucket_sizes(resolution, step)
        assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
        for height, width in sizes:
            assert height % step == width % step == 0 and (width, height) in sizes
            assert height * width <= resolution**2 < height * width + step * max(height, width)
            assert 0.25 <= height / width <= 4
    assert {(1024, 1024), (512, 2048), (576, 1792), (832, 1216), (768, 1344)} <= set(bucket_sizes(1024, 64))
    with pytest.raises(InputError, match="the resolution is 500, expected a multiple of 64; give 448 or 512"):
        bucket_sizes(500, 64)


def test_a_picture_goes_to_the_nearest_ratio_and_is_covered() -> None:
    sizes = bucket_sizes(512, 64)
    assert nearest_bucket((3000, 3000), sizes) == (512, 512)
    assert nearest_bucket((100, 900), sizes) == (256, 1024)
    for size in ((300, 301), (1, 900), (77, 31)):
        bucket = nearest_bucket(size, sizes)
        covering = covering_size(size, bucket)
        assert covering[0] >= bucket[0] and covering[1] >= bucket[1]
        assert min(covering[0] - bucket[0], covering[1] - bucket[1]) == 0


def test_sizes_and_crops_are_those_that_sdxl_is_told(folder: Path) -> None:
    for batch in first(folder, 8):
        assert batch.pixels.shape == (2, 3, *batch.target_size) and float(batch.pixels.abs().max()) <= 1
        for text, size, corner in zip(batch.captions, batch.original_size, batch.crop_top_left, strict=True):
            assert size == SIZES[text[-1]]
            room = covering_size(size, batch.target_size)
            assert all(0 <= c <= r - t for c, r, t in zip(corner, room, batch.target_size, strict=True))


def test_a_crop_of_a_picture_of_the_buckets_size_is_the_picture(tmp_path: Path) -> None:
    Image.fromarray(texture(32, 32)).save(tmp_path / "a.png")
    batch = first(tmp_path, 1, batch=1, options=DataOptions(bucket_step=8, caption="all"))[0]
    expected = torch.from_numpy(texture(32, 32)).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert_close(batch.pixels, expected, 1e-6)
    assert batch.captions == ("all",) and batch.crop_top_left == ((0, 0),)


def test_orientation_transparency_and_sixteen_bits(tmp_path: Path) -> None:
    turned = Image.fromarray(texture(20, 60))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "b.png")
    Image.fromarray(np.full((32, 32), 32768, np.uint16)).save(tmp_path / "c.png")
    batches = first(tmp_path, 8, batch=1, options=DataOptions(bucket_step=8, caption="x"))
    sizes = {batch.original_size[0] for batch in batches}
    assert (20, 60) in sizes
    levels = sorted({round(float(b.pixels.mean()), 3) for b in batches if b.original_size[0] == (32, 32)})
    assert levels == [0.0, 1.0]


def test_a_broken_picture_is_left_out_by_name(folder: Path) -> None:
    (folder / "f.png").write_bytes(b"no picture")
    whole = (folder / "e2.png", (folder / "below/e.png").read_bytes())
    whole[0].write_bytes(whole[1][: len(whole[1]) // 2])
    (folder / "e2.txt").write_text("broken")
    data = open_dataset(folder, 32, SMALL)
    assert set(data.skipped) == {"f.png"}
    seen = {text for batch in islice(data.batches(2, 0), 20) for text in batch.captions}
    assert "broken" not in seen and set(data.skipped) == {"f.png", "e2.png"}


def test_a_shard_that_is_cut_short_gives_what_is_there(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", {"a.png": png("a"), "a.txt": b"a", "b.png": png("b"), "b.txt": b"b"})
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: len(png("a")) + 2048])
    data = open_dataset(tmp_path, 32, SMALL)
    assert len(data) == 1 and "cut short" in data.skipped[str(tmp_path / "x.tar")]


def test_what_cannot_be_trained_on_is_said_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures; give a folder of pictures"):
        open_dataset(tmp_path, 32, SMALL)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "none", 32, SMALL)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="is a file; give a folder"):
        open_dataset(tmp_path / "a.txt", 32, SMALL)
    picture("b").save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"none of 1 pictures has a caption; write each into a .txt file"):
        open_dataset(tmp_path, 32, SMALL)
    assert len(open_dataset(tmp_path, 32, DataOptions(bucket_step=8, needs_captions=False))) == 1
    write_shard(tmp_path / "x.tar", {"a.png": png("a")})
    with pytest.raises(InputError, match="holds pictures and 1 tars"):
        open_dataset(tmp_path, 32, SMALL)
