"""Animated pictures and files of several pages: every frame read, and written to the same kind of file. No torch."""

import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image, TiffImagePlugin

from enlarger.errors import InputError
from enlarger.image.decode import PIXEL_LIMIT, decode_error, decode_image, one_line, open_image
from enlarger.image.deep import DeepImage, in_eight_bits, mode_of
from enlarger.image.encode import FORMAT_MODES, FRAME_SUFFIXES, check_output, file_options, write_image, write_whole
from enlarger.image.generation import Json
from enlarger.image.metadata import Strip, read_file_metadata

ONE_FRAME_FORMATS = ("JPEG", "BMP")


@dataclass(frozen=True)
class Timing:
    """How long each frame of an animation is shown, in milliseconds, and how often it runs; None: nothing is said."""

    count: int = 1  # of frames
    durations: tuple[float, ...] = ()
    loop: int | None = None

    def options(self) -> Json:
        """As Pillow takes it."""
        durations = {"duration": [round(each) for each in self.durations]} if self.durations else {}
        return durations | ({} if self.loop is None else {"loop": self.loop})


def check_frames(path: Path, timing: Timing) -> None:
    """Raise InputError for a kind of file that holds one picture where there are several."""
    name = FRAME_SUFFIXES.get(path.suffix.lower())
    if name in ONE_FRAME_FORMATS and timing.count > 1:
        found = f"{name} holds one picture, the input has {timing.count}"
        raise InputError(f"{one_line(path)}: {found}; save as PNG, WebP, TIFF, GIF or AVIF")


@dataclass(frozen=True)
class FrameSettings:
    """How the files of frames are written; see `encode.save_image`."""

    overwrite: bool = False
    quality: int = 95
    strip: Strip = "none"
    generation: Json | None = None


def count_frames(image: Image.Image) -> int:
    """How many frames or pages an opened file has; what phones put behind a JPEG is none."""
    frames: int = getattr(image, "n_frames", 1)
    return 1 if image.format == "MPO" else frames


def read_timing(path: str | Path) -> Timing:
    """How many frames a file has, how long each is shown, and how they run. Raises as `read_picture` does."""
    durations, loop = list[float](), None
    with open_image(path) as (image, name), _decoding(name):
        count = count_frames(image)
        for index in range(count):
            image.seek(index)
            image.load()  # WebP tells a frame's time with its pixels
            found: Any = image.info.get("duration")
            durations.append(float(found or 0))
        value: Any = image.info.get("loop")
        loop = value if isinstance(value, int) else None
        is_animation = image.format != "TIFF"
    return Timing(count, tuple(durations), loop) if is_animation else Timing(count)


def read_frames(path: str | Path, *, limit: int = PIXEL_LIMIT) -> Iterator[Image.Image]:
    """Each frame whole, upright, with its own metadata in a TIFF, and those of its file in others. Raises InputError as
    `read_picture` does.

    The file is closed between two frames, so that other pictures are read meanwhile.
    """
    with open_image(path) as (image, name), _decoding(name):
        count = count_frames(image)
    return (_read_frame(path, index, limit) for index in range(count))


def _read_frame(path: str | Path, index: int, limit: int) -> Image.Image:
    with open_image(path) as (image, name):
        is_page, about = image.format == "TIFF", Json()
        with _decoding(name):
            if not is_page:
                about = read_file_metadata(image)
            elif index > 0:  # Pillow leaves what the first page says to those that say nothing
                for key in ("icc_profile", "dpi"):
                    image.info.pop(key, None)
            image.seek(index)
        frame = decode_image(image, name, limit, []).copy()
        about = read_file_metadata(image) if is_page else about
    for key in set(frame.info) - {"icc_profile", "transparency"}:
        del frame.info[key]
    frame.info.update(about)
    return frame


@contextmanager
def _decoding(name: str) -> Generator[None]:
    """What a decoder raises on a damaged file is raised as an InputError that names it."""
    try:
        yield
    except Exception as error:
        raise decode_error(name, error) from error


def save_frames(frames: Iterable[Image.Image], path: str | Path, timing: Timing, settings: FrameSettings) -> Path:
    """Write frames to one file, whole or not at all; they are asked for one after another.

    Raises InputError as `save_image` does, and for a kind of file that holds one picture.
    """
    path, frames = Path(path), iter(frames)
    first = next(frames)
    name = check_output(path, mode_of(first), first.size, overwrite=settings.overwrite, suffixes=FRAME_SUFFIXES)
    generation = settings.generation
    if generation:
        generation = generation | {"file": {"quality": settings.quality, "strip": settings.strip}}
    options: Json = {"quality": settings.quality} if name in ("JPEG", "WEBP", "AVIF") else {}

    def about(frame: Image.Image) -> Json:
        own, lost = file_options(frame, name, settings.strip, generation)
        notes.update(dict.fromkeys(lost))
        return options | own

    notes = dict.fromkeys(_losses(first, name))
    with write_whole(path, overwrite=settings.overwrite) as stream:
        if name == "TIFF":
            with TiffImagePlugin.AppendingTiffWriter(stream) as pages:
                for frame in chain([first], frames):
                    write_image(frame, pages, name, about(frame))  # pyright: ignore[reportArgumentType] - a stream but in name
                    pages.newFrame()
        else:
            options = about(first) | timing.options()
            first = _held(first, name)
            first.info = {}
            more = (_held(frame, name) for frame in frames)
            more = list(more) if name == "PNG" else more  # Pillow goes over them twice
            first.save(stream, name, save_all=True, append_images=more, **options)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return path


def _held(frame: Image.Image, format_name: str) -> Image.Image:
    """A frame as animations hold it: with 8 bits, or as 16-bit grey where there is such."""
    is_grey = frame.mode == "I;16" and "I;16" not in FORMAT_MODES[format_name]
    return in_eight_bits(frame) if is_grey else Image.Image.copy(frame)


def _losses(first: Image.Image, format_name: str) -> tuple[str, ...]:
    """What frames like the first lose in a file of several."""
    notes = ("GIF holds 256 colours in a frame: reduced to these",) if format_name == "GIF" else ()
    if isinstance(first, DeepImage) and format_name != "TIFF":
        return (*notes, "animations hold 8 bits: the 16-bit colour is rounded")
    is_rounded = first.mode == "I;16" and "I;16" not in FORMAT_MODES[format_name]
    return notes + ((f"{format_name} holds 8 bits: the 16-bit grey is rounded",) if is_rounded else ())
