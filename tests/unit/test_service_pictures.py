"""The pool of decoder processes: what it writes equals what was sent, and it outlives whatever happens to a child."""

import asyncio
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from enlarger.errors import InputError
from enlarger.image.decode import ORIENTATION_TRANSPOSES, open_upright
from enlarger.image.deep import DeepImage
from enlarger.image.picture import read_picture, to_pil
from enlarger.service.problems import ProblemError
from enlarger.service.settings import Bounds, Settings
from enlarger.service.uploads import decoder_pool
from enlarger.service.uploads.decoder_pool import DecoderPool
from enlarger.service.uploads.masks import Fit
from enlarger.service.uploads.messages import DecodedImage
from tests.support.pictures import gamma_profile, odd_files, texture

MOST = 1_000_000


@dataclass
class Pool:
    """A started decoder and the loop it lives on."""

    decoder: DecoderPool
    runner: asyncio.Runner

    def picture(self, source: Path, out: Path, **more) -> DecodedImage:
        return self.runner.run(self.decoder.decode_image(source, out, **({"max_pixels": MOST} | more)))

    def mask(self, source: Path, out: Path, **more) -> DecodedImage:
        return self.runner.run(self.decoder.decode_mask(source, out, **more))

    def pids(self) -> set[int]:
        return {child.process.pid for child in self.decoder._processes}


def started(**bounds) -> Iterator[Pool]:
    with asyncio.Runner() as runner:
        decoder = DecoderPool(Settings(bounds=Bounds(**bounds)))
        runner.run(decoder.start())
        try:
            yield Pool(decoder, runner)
        finally:
            runner.run(decoder.stop())


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    yield from started(image=8 << 20, mask=1000)


@pytest.fixture
def own_pool() -> Iterator[Pool]:
    yield from started(decode_seconds=0.5)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def refused(call, *arguments, **more) -> tuple[str, str]:
    with pytest.raises(ProblemError) as caught:
        call(*arguments, **more)
    refusal = caught.value.problem
    assert refusal.status == 400
    return refusal.code, refusal.message


def test_the_decoder_imports_no_torch() -> None:
    code = (
        "import sys; import enlarger.service.uploads.decoder_process; print([m for m in ('torch', 'fastapi', "
        "'pydantic', "
        "'asyncio', 'ssl') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_reading_what_was_written_equals_reading_what_was_sent(pool: Pool, tmp_path: Path) -> None:
    for case in odd_files(tmp_path):
        out = tmp_path / "out.png"
        found = pool.picture(case.path, out)
        before, after = read_picture(case.path), read_picture(out)
        assert (found.width, found.height) == found.original_size == (before.width, before.height), case.path.name
        assert np.array_equal(np.asarray(to_pil(before)), np.asarray(to_pil(after))), case.path.name
        assert (before.is_grey, before.bit_depth) == (after.is_grey, after.bit_depth), case.path.name
        assert {*before.notes} == {*found.notes, *after.notes}, case.path.name
        assert not {*found.notes} & {*after.notes}, f"{case.path.name}: said twice"
        assert found.sha256 == hashlib.sha256(case.path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("suffix", "module", "name"), [("heic", "pillow_heif", "HEIF"), ("jxl", "pillow_jxl", "JXL")])
def test_the_confined_process_reads_optional_formats(
    pool: Pool, tmp_path: Path, suffix: str, module: str, name: str
) -> None:
    pytest.importorskip(module, reason="the extra is not installed")
    source = saved(tmp_path / f"a.{suffix}", Image.fromarray(texture(900, 700)), format=name)
    found = pool.picture(source, tmp_path / "out.png")
    assert (found.format, found.width, found.height) == (name, 900, 700)
    assert np.array_equal(np.asarray(Image.open(source)), np.asarray(Image.open(tmp_path / "out.png")))
    assert refused(pool.picture, source, tmp_path / "out.png", max_pixels=600_000)[0] == "image_too_large"


def test_pixels_that_png_holds_are_not_converted(pool: Pool, tmp_path: Path) -> None:
    image, out, profile = Image.fromarray(texture(20, 14, 4)), tmp_path / "out.png", gamma_profile()
    source = saved(tmp_path / "a.png", image, icc_profile=profile, pnginfo=None)
    found = pool.picture(source, out)
    with Image.open(out) as written:
        assert np.array_equal(np.asarray(written), np.asarray(image)) and written.mode == found.mode == "RGBA"
        assert written.info["icc_profile"] == profile
    assert found.format == "PNG" and found.has_transparency and found.notes == ()


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_confined_decoding_keeps_16_bits_of_colour(pool: Pool, tmp_path: Path, kind: str) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (14, 20, 4), dtype=np.uint16)
    source, out = tmp_path / f"a.{kind}", tmp_path / "out.png"
    if kind == "tif":
        tifffile.imwrite(source, samples, photometric="rgb", extrasamples="unassalpha", compression="lzw")
    else:
        DeepImage.from_samples(samples).save(source)
    found = pool.picture(source, out)
    assert (found.mode, found.notes, found.has_transparency) == ("RGBA;16", (), True)
    assert np.array_equal(imagecodecs.png_decode(out.read_bytes()), samples)


def test_nothing_but_pixels_and_profile_is_written(pool: Pool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, "a secret place"
    source = saved(tmp_path / "a.jpg", Image.fromarray(texture(20, 14)), exif=exif, comment="a secret")
    pool.picture(source, tmp_path / "out.png")
    assert b"secret" in source.read_bytes() and b"secret" not in (tmp_path / "out.png").read_bytes()
    with Image.open(tmp_path / "out.png") as written:
        assert written.info == {} and not written.getexif()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_come_upright(pool: Pool, tmp_path: Path, suffix: str, orientation: int) -> None:
    exif, image = Image.Exif(), Image.fromarray(texture(23, 14))
    exif[0x0112] = orientation
    plain, source = saved(tmp_path / f"b.{suffix}", image), saved(tmp_path / f"a.{suffix}", image, exif=exif)
    found = pool.picture(source, tmp_path / "out.png")
    with Image.open(plain) as lying, Image.open(tmp_path / "out.png") as written:
        upright = (
            lying.transpose(ORIENTATION_TRANSPOSES[orientation]) if orientation in ORIENTATION_TRANSPOSES else lying
        )
        assert np.array_equal(np.asarray(written), np.asarray(upright))
    assert (found.width, found.height) == ((23, 14) if orientation < 5 else (14, 23))


def test_floats_keep_sixteen_bits_and_others_are_scaled(pool: Pool, tmp_path: Path) -> None:
    ramp, out = np.linspace(0, 1, 280, dtype=np.float32).reshape(14, 20), tmp_path / "out.png"
    found = pool.picture(saved(tmp_path / "a.tif", Image.fromarray(ramp)), out)
    assert found.mode == "I;16" and found.notes == ("floating-point grey: kept with 16 bits",)
    assert np.abs(np.asarray(open_upright(out)) / 65535 - ramp).max() < 1e-5
    for values in (ramp * 200, ramp * 2 - 1):
        found = pool.picture(saved(tmp_path / "b.tif", Image.fromarray(values.astype(np.float32))), out)
        assert any("expected 0 to 1: scaled to that" in note for note in found.notes)
        assert np.abs(np.asarray(open_upright(out)) / 65535 - ramp).max() < 1e-5
    code, text = refused(pool.picture, saved(tmp_path / "c.tif", Image.fromarray(ramp * np.float32(np.nan))), out)
    assert code == "invalid_image" and "found NaN or infinity in every pixel" in text


@pytest.mark.parametrize("channels", [3, 4])
def test_light_in_colour_is_scaled_within_the_bounds_of_memory(pool: Pool, tmp_path: Path, channels: int) -> None:
    values = np.full((990, 1000, channels), 0.5)
    values[0, 0, 0] = 3
    extra = {"extrasamples": "assocalpha"} if channels == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="zlib", **extra)
    found = pool.picture(tmp_path / "a.tif", tmp_path / "out.png")
    assert found.mode == {3: "RGB;16", 4: "RGBA;16"}[channels] and "0 to 1: scaled to that" in found.notes[0]


def test_a_profile_too_large_for_a_png_is_converted(pool: Pool, tmp_path: Path) -> None:
    out, large = tmp_path / "out.png", 5 << 20
    for profile, note in ((gamma_profile(), "converted to sRGB from"), (b"", "the colour profile cannot be used")):
        source = saved(tmp_path / "a.tif", Image.fromarray(texture(20, 14)), icc_profile=profile + bytes(large))
        found = pool.picture(source, out)
        assert len(found.notes) == 1 and note in found.notes[0]
        before, after = read_picture(source), read_picture(out)
        assert np.array_equal(np.asarray(to_pil(before)), np.asarray(to_pil(after))) and after.notes == ()


def test_a_fit_is_applied_to_the_picture_and_to_its_mask(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    picture = saved(tmp_path / "a.png", Image.fromarray(texture(20, 10)))
    mask = saved(tmp_path / "m.png", Image.fromarray(np.repeat([[0, 255]], 10, 1).repeat(10, 0).astype(np.uint8)))
    found = pool.picture(picture, out, fit=Fit(10, 10, "crop"))
    assert (found.width, found.height, found.original_size) == (10, 10, (20, 10))
    found = pool.mask(mask, out, size=found.original_size, mode="auto", fit=Fit(10, 10, "crop"))
    assert (found.width, found.height, found.mode) == (10, 10, "L")
    values = np.asarray(open_upright(out))
    assert (values[:, :5] == 0).all() and (values[:, 5:] == 255).all()


def test_masks_of_every_kind(pool: Pool, tmp_path: Path) -> None:
    out, ramp = tmp_path / "out.png", np.arange(100, dtype=np.uint16).reshape(10, 10) * 655
    deep = saved(tmp_path / "deep.png", Image.fromarray(ramp))
    assert pool.mask(deep, out, size=(10, 10)).format == "PNG"
    assert np.array_equal(np.asarray(open_upright(out)), (ramp.astype(int) + 128) // 257)
    jpeg = saved(tmp_path / "m.jpg", Image.fromarray(((ramp > 20_000) * 255).astype(np.uint8)))
    assert "is a JPEG" in pool.mask(jpeg, out, size=(10, 10)).notes[0]
    code, text = refused(pool.mask, deep, out, size=(10, 20), mode="luminance")
    assert code == "mask_size_mismatch" and "is 10 x 10 pixels and the picture 10 x 20" in text
    assert pool.mask(deep, out, size=(10, 20), resize=True).height == 20
    source = saved(tmp_path / "a.png", Image.new("RGBA", (4, 3), (9, 9, 9, 0)))
    assert pool.runner.run(pool.decoder.decode_alpha_mask(source, out)).mode == "L"
    assert set(np.asarray(open_upright(out)).flat) == {255}


def test_files_are_refused_with_the_code_of_their_fault(pool: Pool, tmp_path: Path) -> None:
    source, out = tmp_path / "upload", tmp_path / "out.png"
    whole = io.BytesIO()
    Image.fromarray(texture(30, 20)).save(whole, "PNG")
    cases = {
        b"": ("empty_image_file", "photo: the file is empty (0 bytes); copy or download it again"),
        b"text" * 9: ("invalid_image_format", "photo: is not a picture, expected one of PNG, JPEG"),
        b"%PDF-1.7 ": ("unsupported_image_media_type", "photo: is a PDF, expected one of PNG, JPEG"),
        b"\0\0\0\x18ftypmif2" + bytes(20): ("unsupported_image_media_type", "photo: is a film, expected one"),
        b"  <SVG width='9'>": ("unsupported_image_media_type", "photo: is an SVG drawing, expected one of"),
        whole.getvalue()[:300]: ("image_parse_error", "photo: the file is cut short; copy or download it again"),
        bytes((8 << 20) + 1): ("image_file_too_large", "photo: is 8,388,609 bytes, at most 8,388,608 are read"),
    }
    for data, (code, text) in cases.items():
        source.write_bytes(data)
        found = refused(pool.picture, source, out, param="photo")
        assert found[0] == code and found[1].startswith(text), found
        assert str(tmp_path) not in found[1] and not out.exists()
    source.write_bytes(whole.getvalue())
    found = refused(pool.picture, source, out, max_pixels=599)
    assert found == ("image_too_large", "image: 30 x 20: has 600 pixels, at most 599 are read; shrink or crop it first")
    source.write_bytes(bytes(1001))
    assert refused(pool.mask, source, out, size=(1, 1))[0] == "image_file_too_large"


def test_a_file_that_cannot_be_written_is_no_fault_of_the_picture(pool: Pool, tmp_path: Path) -> None:
    source = saved(tmp_path / "a.png", Image.fromarray(texture(30, 20)))
    with pytest.raises(
        ProblemError, match=r"the service cannot write its files \(No such file or directory\)"
    ) as caught:
        pool.picture(source, tmp_path / "missing" / "out.png")
    assert (caught.value.problem.status, caught.value.problem.code) == (500, "storage_failed")


def test_many_pictures_at_once_each_get_their_own_answer(pool: Pool, tmp_path: Path) -> None:
    sizes = [(k + 3, 20 - k) for k in range(16)]
    sources = [saved(tmp_path / f"{k}.png", Image.new("L", size)) for k, size in enumerate(sizes)]

    async def all_of_them() -> list[DecodedImage]:
        outs = (path.with_suffix(".out") for path in sources)
        work = (pool.decoder.decode_image(s, o, max_pixels=MOST) for s, o in zip(sources, outs, strict=True))
        return await asyncio.gather(*work)

    assert [found.original_size for found in pool.runner.run(all_of_them())] == sizes


def test_a_child_that_hangs_costs_its_picture_and_is_replaced(own_pool: Pool, tmp_path: Path) -> None:
    source, before = saved(tmp_path / "a.png", Image.new("L", (4, 4))), own_pool.pids()
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    code, text = refused(own_pool.picture, source, tmp_path / "out.png")
    assert code == "image_parse_error" and text.startswith("image: took longer than 0.5 seconds to decode; shrink it")
    for _ in range(len(before) - 1):
        assert refused(own_pool.picture, source, tmp_path / "out.png")[0] == "image_parse_error"
    assert own_pool.picture(source, tmp_path / "out.png").width == 4
    own_pool.runner.run(settled(own_pool.decoder))
    assert not before & own_pool.pids() and len(own_pool.pids()) == len(before)


async def settled(decoder: DecoderPool) -> None:
    await asyncio.gather(*decoder._tasks)


def test_a_child_that_dies_costs_no_picture_but_one_it_dies_of(own_pool: Pool, tmp_path: Path, caplog) -> None:
    source, out = saved(tmp_path / "a.png", Image.new("L", (4, 4))), tmp_path / "out.png"
    os.kill(min(own_pool.pids()), signal.SIGKILL)
    for _ in range(3):
        assert own_pool.picture(source, out).width == 4
    with pytest.MonkeyPatch.context() as deadly:
        deadly.setattr(decoder_pool.DecoderProcess, "request", die)
        code, text = refused(own_pool.picture, source, out)
    assert (code, text) == (
        "image_parse_error",
        "image: cannot be decoded, the decoder failed on it; save it anew with another program",
    )
    assert "a decoder was lost over an upload: it ended without an answer" in caplog.text
    assert own_pool.picture(source, out).width == 4


async def die(child: decoder_pool.DecoderProcess, message: dict, seconds: float) -> dict:
    child.process.kill()
    return await child.read_reply(seconds)


def test_a_request_that_goes_away_leaves_the_pool_whole(own_pool: Pool, tmp_path: Path) -> None:
    source, out = saved(tmp_path / "a.png", Image.fromarray(texture(900, 900))), tmp_path / "out.png"

    async def left() -> None:
        for _ in range(4):
            task = asyncio.create_task(own_pool.decoder.decode_image(source, out, max_pixels=MOST))
            await asyncio.sleep(0.002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    own_pool.runner.run(left())
    small = saved(tmp_path / "b.png", Image.new("L", (4, 4)))
    assert own_pool.picture(small, out).width == 4


def test_children_are_replaced_after_some_pictures(own_pool: Pool, tmp_path: Path, monkeypatch) -> None:
    ages = {decoder.num_decoded for decoder in own_pool.decoder._processes}
    assert len(ages) == len(own_pool.pids())  # not all at once: one is left to answer
    monkeypatch.setattr(decoder_pool, "MAX_IMAGES_PER_PROCESS", 2)
    source, before = saved(tmp_path / "a.png", Image.new("L", (4, 4))), own_pool.pids()
    for _ in range(4):
        assert own_pool.picture(source, tmp_path / "out.png").width == 4
    own_pool.runner.run(settled(own_pool.decoder))
    assert not before & own_pool.pids() and len(own_pool.pids()) == len(before)


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_a_decoder_that_is_taken_over_reaches_nothing_but_its_job(tmp_path: Path, monkeypatch) -> None:
    hostile = (sys.executable, "-m", "tests.support.hostile_decoder")
    monkeypatch.setattr(decoder_pool, "DECODER_ARGV", hostile)
    monkeypatch.setenv("ENLARGER_SECRET", "sk-123")
    (tmp_path / "other").mkdir()
    saved(tmp_path / "other" / "image.png", Image.new("L", (8, 8)))
    with socket.create_server(("127.0.0.1", 0)) as net, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        folder = tmp_path / str(net.getsockname()[1])
        folder.mkdir()
        for pool in started():
            assert pool.decoder.confinement == ("landlock", "seccomp")
            source = saved(tmp_path / "upload", Image.new("L", (8, 8)), format="PNG")
            for _ in range(2):
                assert pool.picture(source, folder / "out.png").notes == ("reads its upload", "writes into its job")


def test_what_does_not_confine_is_said_at_the_start(monkeypatch, caplog) -> None:
    code = "import sys; sys.modules['landlock'] = sys.modules['pyseccomp'] = None; from enlarger.service.uploads import"
    argv = (sys.executable, "-c", f"{code} decoder_process; decoder_process.main()")
    monkeypatch.setattr(decoder_pool, "DECODER_ARGV", argv)
    for pool in started():
        assert pool.decoder.confinement == ()
    assert "nothing keeps one that is taken over from reading other files" in caplog.text
    assert "nothing keeps one that is taken over from the network" in caplog.text


def test_a_tiff_of_a_few_pixels_with_huge_tiles_is_refused(pool: Pool, tmp_path: Path) -> None:
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 16384, 323: 16384, 324: 200, 325: 16384**2}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    source = tmp_path / "huge.tif"
    source.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(100))
    code, text = refused(pool.picture, source, tmp_path / "out.png")
    assert code == "image_parse_error" and "has tiles of 16384 x 16384 pixels for a picture of 8 x 8" in text
    with pytest.raises(InputError, match="has tiles of 16384 x 16384"):
        open_upright(source)


def test_what_a_file_says_of_itself_is_kept_short(pool: Pool, tmp_path: Path) -> None:
    text, profile = ("A" * 450_000).encode("utf-16-be"), bytearray(gamma_profile())
    element = struct.pack(">4s4xII4sII", b"mluc", 1, 12, b"enUS", len(text), 28) + text
    at = profile.index(b"desc", 128)
    profile[at : at + 12] = struct.pack(">4sII", b"desc", len(profile), len(element))
    profile[:4] = struct.pack(">I", len(profile) + len(element))
    source = tmp_path / "a.tif"
    Image.new("CMYK", (8, 8)).convert("RGB").save(source, icc_profile=bytes(profile) + element)
    assert source.stat().st_size > 900_000
    notes = [*pool.picture(source, tmp_path / "out.png").notes, *read_picture(source).notes]
    assert any("AAAA" in note for note in notes) and max(map(len, notes)) <= 1000


def test_stopping_ends_the_children(tmp_path: Path) -> None:
    pools = started()
    pool = next(pools)
    pids = pool.pids()
    assert len(pids) == min(2, os.cpu_count() or 1)
    pools.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_decoder_that_cannot_start_says_so(monkeypatch) -> None:
    monkeypatch.setattr(decoder_pool, "DECODER_ARGV", ("/bin/true",))
    with asyncio.Runner() as runner, pytest.raises(decoder_pool.DecoderDied, match="it ended without an answer"):
        runner.run(DecoderPool(Settings()).start())


def test_a_decoder_that_cannot_be_replaced_is_a_fault_of_ours(own_pool: Pool, tmp_path: Path, monkeypatch) -> None:
    source, out = saved(tmp_path / "a.png", Image.new("L", (4, 4))), tmp_path / "out.png"
    monkeypatch.setattr(decoder_pool, "MAX_IMAGES_PER_PROCESS", 0)
    with monkeypatch.context() as broken:
        broken.setattr(decoder_pool, "DECODER_ARGV", ("/bin/true",))
        for _ in own_pool.pids():
            assert own_pool.picture(source, out).width == 4
        with pytest.raises(ProblemError, match="the service cannot start its decoder; its log says why") as caught:
            own_pool.picture(source, out)
        assert caught.value.problem.status == 500
        own_pool.runner.run(settled(own_pool.decoder))
    assert own_pool.picture(source, out).width == 4


def test_lab_and_cmyk_come_as_the_colours_they_are(pool: Pool, tmp_path: Path) -> None:
    colour = Image.fromarray(texture(20, 14))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(colour, srgb, lab, outputMode="LAB")
    assert image is not None
    found = pool.picture(saved(tmp_path / "a.tif", image), tmp_path / "out.png")
    assert found.mode == "RGB"
    off = np.asarray(open_upright(tmp_path / "out.png")).astype(int) - np.asarray(colour)
    assert np.abs(off).mean() < 3
