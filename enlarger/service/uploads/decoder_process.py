"""The decoder process: turns one uploaded file at a time into a PNG of our own writing. It imports no torch.

One JSON object per line, see `messages.py`: requests come in; `DecoderReady` goes out once, then a reply to each. It
forks a process for each picture, confined by `sandbox.py`, so that one that is taken over has nothing of another.
"""

import errno
import json
import math
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from PIL import AvifImagePlugin, Image, PngImagePlugin

from enlarger.errors import InputError
from enlarger.image.atomic_write import atomic_write
from enlarger.image.colour import deep_to_srgb, srgb_profile, to_srgb, to_unit_grey
from enlarger.image.decode import (
    READABLE_FORMATS,
    UnreadableImage,
    UnreadableReason,
    check_size,
    decode_image,
    one_line,
    open_image,
)
from enlarger.image.deep import DeepImage, load_codecs, mode_of
from enlarger.image.digest import file_sha256
from enlarger.image.mask_cleaning import lossy_kind_of
from enlarger.image.optional_formats import jxl_file_size
from enlarger.image.other_kinds import HEAD_BYTES, other_kind
from enlarger.service.problems import Problem, ProblemError, problem_error
from enlarger.service.uploads import sandbox
from enlarger.service.uploads.body_parser import parse_body
from enlarger.service.uploads.file_texts import read_texts
from enlarger.service.uploads.masks import Fit, apply_fit, mask_from_alpha, read_mask, resize_mask
from enlarger.service.uploads.messages import (
    ESCAPED_BYTES,
    MAX_REPLY_BYTES,
    UNREADABLE_BODY,
    DecodedImage,
    DecoderCrashed,
    DecodeRequest,
    DecoderReady,
    DecoderReply,
    DecodingFailed,
    ParseRequest,
)

ERROR_CODES: dict[UnreadableReason, str] = {
    "missing": "image_file_not_found",
    "empty": "empty_image_file",
    "unknown": "invalid_image_format",
    "damaged": "image_parse_error",
    "small": "image_too_small",
    "large": "image_too_large",
}
MAX_PNG_CHUNKS = 1000  # of a PNG, those with pixels not counted
MAX_TEXT_BYTES = 4 << 20  # bytes of text in a PNG, unpacked
MAX_PROFILE_BYTES = 1 << 20  # bytes of a colour profile that Pillow reads back from a PNG
CONVERTED_MODES = ("CMYK", "LAB", "YCbCr", "HSV")  # modes that a PNG does not hold
REPLY_FD = 3  # of a picture's process: where its reply goes
MAX_OPEN_FILES = 32
MARGIN_BYTES, DATA_PER_PIXEL = 64 << 20, 48  # bytes of memory of a picture's process: beside its pixels, and for each
NICENESS = 5  # of `nice`: the server goes first
DATA_PER_BODY_BYTE = 6  # a picture in JSON: as bytes, as text, as a value, its base64 twice, and decoded
BASE_MEMORY_BYTES, BYTES_PER_PIXEL = 1 << 30, 24  # bytes of address space: the process, and each pixel


_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class PngImage:
    """What is written: an image in a mode that PNG holds, and the colour profile that goes with it."""

    image: Image.Image
    profile: bytes | None = None

    @property
    def has_transparency(self) -> bool:
        """Whether any pixel is less than opaque."""
        mode = self.image.mode
        return mode in ("LA", "RGBA") and int(np.asarray(self.image.getchannel("A")).min()) < 255


@dataclass(frozen=True)
class MemoryLimit:
    """What a picture's process may take beside what it has already: for its file, and for its very pixels, whatever
    else the file asks for."""

    base_bytes: int

    @classmethod
    def begin(cls, request: DecodeRequest | ParseRequest) -> "MemoryLimit | None":
        """Allow for the file. None where the system does not say what a process takes."""
        per_byte = 2 if isinstance(request, DecodeRequest) else DATA_PER_BODY_BYTE
        try:
            limit = cls(_data_bytes() + MARGIN_BYTES + per_byte * os.stat(request.source).st_size)
        except OSError:
            return None
        _set_limit(resource.RLIMIT_DATA, limit.base_bytes, is_soft=True)
        return limit

    def allow(self, request: DecodeRequest, size: tuple[int, int]) -> None:
        """Allow for the pixels of a header that was found good, and of what they are fitted to."""
        pixels = size[0] * size[1] + (0 if request.fit is None else request.fit.width * request.fit.height)
        _set_limit(resource.RLIMIT_DATA, self.base_bytes + DATA_PER_PIXEL * pixels)


def decode(request: DecodeRequest, memory: MemoryLimit | None = None) -> DecodedImage:
    """Do what one request asks. Raises ProblemError and InputError."""
    source, param, notes = Path(request.source), request.param, list[str]()
    _check_magic(source, param, request.max_pixels)
    if (jxl := jxl_file_size(source)) is not None:  # which is decoded as it is opened
        check_size(param, *jxl, request.max_pixels)
        if memory is not None:
            memory.allow(request, jxl)
    with open_image(source, param, notes) as (image, _):
        check_size(param, *image.size, request.max_pixels)
        if memory is not None:
            memory.allow(request, image.size)
        if request.kind == "texts":
            return read_texts(image, source)
        file_format = "JPEG" if image.format == "MPO" else str(image.format)  # several JPEGs in a file, as phones make
        upright = decode_image(image, param, request.max_pixels, notes)
        png = _output_image(upright, request, notes)
        original_size = png.image.size
        if request.fit is not None:
            notes += ["16-bit colour: fitted in 8 bits"] if isinstance(png.image, DeepImage) else []
            png = PngImage(apply_fit(png.image, request.fit), png.profile)
    _write_png(png, Path(request.out))
    digest = file_sha256(source)
    lines, width, height = tuple(one_line(note) for note in notes), png.image.width, png.image.height
    transparent = png.has_transparency
    return DecodedImage(width, height, file_format, mode_of(png.image), lines, digest, transparent, original_size)


def to_png_image(image: Image.Image, name: str, notes: list[str]) -> PngImage:
    """The pixels of a loaded image as PNG holds them: unconverted where it can, in sRGB where it cannot.

    All that will be done with the colour profile is done here once, so that what fails on it fails here.
    """
    profile = image.info.get("icc_profile") or None
    if _is_high_bit_depth(image):
        return PngImage(
            _to_16_bit(image, name, notes), profile if profile and len(profile) <= MAX_PROFILE_BYTES else None
        )
    if isinstance(image, DeepImage):
        return _deep_png_image(image, notes)
    profile_notes: list[str] = []
    srgb_image, srgb_icc = to_srgb(image, profile_notes)
    is_oversized = profile is not None and len(profile) > MAX_PROFILE_BYTES
    if image.mode in CONVERTED_MODES or is_oversized:
        notes += profile_notes
        return PngImage(srgb_image, srgb_profile() if is_oversized and srgb_icc else srgb_icc)
    if any("cannot be used" in note for note in profile_notes):
        notes += profile_notes
        profile = None
    return PngImage(_to_8_bit(image), profile)


def _deep_png_image(image: DeepImage, notes: list[str]) -> PngImage:
    """A picture of 16 bits with its profile, if that can be used."""
    profile, profile_notes = image.info.get("icc_profile") or None, list[str]()
    samples, srgb_icc = deep_to_srgb(image, profile_notes)
    if profile is not None and len(profile) > MAX_PROFILE_BYTES:
        notes += profile_notes
        return PngImage(DeepImage.from_samples(samples), srgb_profile() if srgb_icc else None)
    if any("cannot be used" in note for note in profile_notes):
        notes += profile_notes
        profile = None
    return PngImage(image, profile)


def _output_image(image: Image.Image, request: DecodeRequest, notes: list[str]) -> PngImage:
    """What a request asks to be made of a picture: its pixels, or a mask."""
    if request.kind == "picture":
        return to_png_image(image, request.param, notes)
    if request.kind == "alpha":
        return PngImage(mask_from_alpha(image, request.param))
    if _is_high_bit_depth(image):
        grey = np.asarray(_to_16_bit(image, request.param, notes), np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype("u1"))
    kind = lossy_kind_of(request.source)
    mask = read_mask(image, request.mode, notes, lossy_kind=kind, param=request.param)
    return PngImage(resize_mask(mask, request.size, request.resize, notes, request.param))


def _is_high_bit_depth(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _to_16_bit(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Grey of more than 8 bits as I;16; values outside of what its mode may hold are scaled."""
    if image.info.get("transparency") is not None:
        notes.append("the transparent level of 16-bit grey is left out")
    if image.mode == "F":
        notes.append("floating-point grey: kept with 16 bits")
    return Image.fromarray((to_unit_grey(image, name, notes) * 65535).round().astype(np.uint16))


def _to_8_bit(image: Image.Image) -> Image.Image:
    """L, LA, RGB or RGBA of the modes that hold the same colours otherwise: palettes, bits, a transparent colour."""
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return (image.convert("L") if image.mode == "1" else image).convert("LA" if is_grey else "RGBA")
    return image.convert("L" if is_grey else "RGB")


def _write_png(png: PngImage, out: Path) -> None:
    """Write a PNG without any metadata but the profile, whole or not at all."""
    bare_image = png.image.copy()
    bare_image.info = {}
    options = {} if png.profile is None else {"icc_profile": png.profile}
    try:
        with atomic_write(out, durable=False) as stream:
            bare_image.save(stream, format="PNG", compress_level=1, **options)
    except OSError as error:
        raise problem_from_writing(error) from error


def problem_from_writing(error: OSError) -> ProblemError:
    """The problem of a file that cannot be written."""
    code = "storage_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "storage_failed"
    text = f"the service cannot write its files ({error.strerror}); its disk may be full"
    return problem_error(500, code, text)


def _check_magic(source: Path, name: str, max_pixels: int) -> None:
    """Refuse from a file's first bytes what Pillow would refuse later, or with less to say."""
    with source.open("rb") as stream:
        header = stream.read(HEAD_BYTES)
        if header.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_chunks(stream, name)
    kind = other_kind(header, read=READABLE_FORMATS)
    if kind is not None:
        text = f"{name}: is {kind.name}, expected one of {', '.join(READABLE_FORMATS)}; {kind.way_out}"
        raise problem_error(400, "unsupported_image_media_type", text, name)
    if header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and len(header) >= 30:  # Pillow would make its canvas
        width, height = (int.from_bytes(header[k : k + 3], "little") + 1 for k in (24, 27))
        check_size(name, width, height, max_pixels)


def _check_chunks(stream: BinaryIO, name: str) -> None:
    """Refuse a PNG with more metadata than any program writes: Pillow reads each chunk before the size is known."""
    offset, count = 8, 0
    while count <= MAX_PNG_CHUNKS:
        stream.seek(offset)
        chunk_header = stream.read(8)
        if len(chunk_header) < 8:
            return
        offset += 12 + int.from_bytes(chunk_header[:4], "big")
        count += chunk_header[4:] not in (b"IDAT", b"fdAT", b"fcTL")
    text = f"{name}: has more than {MAX_PNG_CHUNKS:,} pieces of metadata; save it anew with another program"
    raise problem_error(400, "image_parse_error", text, name)


def problem_from_decoding(error: Exception, name: str) -> Problem:
    """The problem of what decoding raised; what is not ours is named by its type alone."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        text = f"{name}: takes more memory to decode than is allowed; shrink it, or save it anew with another program"
        return Problem(400, "image_parse_error", text, name)
    if isinstance(error, UnreadableImage):
        return Problem(400, ERROR_CODES[error.reason], str(error), name)
    if isinstance(error, InputError):
        return Problem(400, "invalid_image", str(error), name)
    kind = type(error).__name__
    text = f"{name}: cannot be decoded ({kind}); copy or download it again, or save it anew with another program"
    return Problem(400, "image_parse_error", text, name)


def parse_request(line: bytes) -> DecodeRequest | ParseRequest:
    """The request of a line."""
    values = json.loads(line)
    if values["kind"] == "body":
        return ParseRequest(**values)
    fit = None if values["fit"] is None else Fit(**values["fit"])
    return DecodeRequest(**values | {"fit": fit, "size": tuple(values["size"])})


def handle_request(request: DecodeRequest | ParseRequest, memory: MemoryLimit | None) -> DecoderReply:
    """The reply to one request, in the process that is for it alone."""
    try:
        return decode(request, memory) if isinstance(request, DecodeRequest) else parse_body(request)
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        return DecodingFailed(_problem_of(error, request))


def _problem_of(error: Exception, request: DecodeRequest | ParseRequest) -> Problem:
    if isinstance(request, DecodeRequest):
        return problem_from_decoding(error, request.param)
    if isinstance(error, OSError):
        return problem_from_writing(error).problem
    return error.problem if isinstance(error, ProblemError) else UNREADABLE_BODY


def decode_apart(request: DecodeRequest | ParseRequest) -> bytes:
    """The reply of a process that has this one upload and nothing of any other, as a line."""
    text_bytes = request.max_text_bytes if isinstance(request, ParseRequest) else 0
    max_bytes = MAX_REPLY_BYTES + ESCAPED_BYTES * text_bytes
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(request, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        line = stream.read(max_bytes)
    if len(line) == max_bytes:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    is_reply = line.endswith(b"\n") and line.count(b"\n") == 1
    return line if is_reply else encode_reply(DecoderCrashed(os.waitstatus_to_exitcode(status)))


def _run_child(request: DecodeRequest | ParseRequest, writer: int) -> NoReturn:
    """Decode with no file open but the pipe for the reply. It ends itself if its parent has long stopped waiting."""
    try:
        signal.alarm(math.ceil(request.seconds) + 5)
        os.dup2(writer, REPLY_FD)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.closerange(REPLY_FD + 1, MAX_OPEN_FILES)
        limit_cpu(request.seconds)
        memory = MemoryLimit.begin(request)
        sandbox.confine(sandbox.Job(Path(request.source), Path(request.out).parent))
        line = encode_reply(handle_request(request, memory))
        while line:
            line = line[os.write(REPLY_FD, line) :]
    finally:
        os._exit(0)


def limit_resources(pixels: int, file_bytes: int) -> None:
    """Take from this process, and from those that it makes, what decoding pictures of so many pixels, from files of so
    many bytes, does not need."""
    limits = {
        resource.RLIMIT_AS: BASE_MEMORY_BYTES + BYTES_PER_PIXEL * pixels,
        resource.RLIMIT_FSIZE: max(9 * pixels, file_bytes) + (16 << 20),  # a PNG that does not compress, a form's file
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _set_limit(limit, value)


def limit_cpu(seconds: float) -> None:
    """A process that ignores its alarm ends by this."""
    _set_limit(resource.RLIMIT_CPU, math.ceil(seconds) + 5)


def _data_bytes() -> int:
    """The memory that this process may write to. Raises OSError where the system does not say it."""
    return int(_STATM.read_text().split()[5]) * resource.getpagesize()


def _set_limit(limit: int, value: int, is_soft: bool = False) -> None:
    with suppress(ValueError, OSError):  # lower already, or a system without it
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1] if is_soft else value))


def main() -> None:
    """Answer requests until the input closes. Arguments: the most pixels of a picture, the most bytes of a file."""
    out = os.dup(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    Image.init()  # all formats now: the processes of pictures can load nothing
    load_codecs()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.MAX_IMAGE_PIXELS = None  # sizes are checked by us, with the limit of the request
    PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
    limit_resources(int(sys.argv[1]), int(sys.argv[2]))
    os.nice(NICENESS)
    os.write(out, encode_reply(DecoderReady(tuple(sandbox.available()))))
    os.dup2(devnull, 2)  # libraries write what files say there
    for line in sys.stdin.buffer:
        reply = decode_apart(parse_request(line))
        while reply:
            reply = reply[os.write(out, reply) :]


def encode_reply(reply: DecoderReply) -> bytes:
    """A reply as a line."""
    return json.dumps(asdict(reply)).encode() + b"\n"


if __name__ == "__main__":
    main()
