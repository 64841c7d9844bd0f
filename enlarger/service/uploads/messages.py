"""What the service and a decoder process say to each other: one JSON object per line.

Plain dataclasses, because pydantic would take a third of the time in which a decoder starts; the service checks replies
with it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from enlarger.service.problems import Problem
from enlarger.service.uploads.masks import Fit

MAX_REPLY_BYTES = 4 << 20  # bytes of a message, the text of a body not counted; notes may be long
Dialect = Literal["openai", "a1111"]  # in which a JSON body names its pictures
ESCAPED_BYTES = 6  # of a message, at most, for each byte of a body's text


@dataclass(frozen=True)
class DecodeRequest:
    """A file to decode: its picture, its mask, what is transparent of it as a mask, or only its texts."""

    kind: Literal["picture", "mask", "alpha", "texts"]
    source: str
    out: str
    param: str  # the field of the request, for error texts
    max_pixels: int
    seconds: float
    fit: Fit | None = None
    size: tuple[int, int] = (0, 0)  # of a mask: width and height of its picture before the fit
    mode: str = "auto"  # of a mask, as in `read_mask`
    resize: bool = False  # of a mask: it may have another size


@dataclass(frozen=True)
class ParseRequest:
    """A body to take apart; its files are written beside it, as `out` with -0, -1 ... behind it."""

    format: Literal["json", "multipart", "urlencoded"]
    source: str
    out: str
    boundary: str  # of a multipart form
    max_fields: int
    max_text_bytes: int  # of all that is not in a file
    max_image_bytes: int  # of a picture in a data: URL
    max_mask_bytes: int
    seconds: float
    max_files: int = 17  # more than one picture is refused too, with a better text
    dialect: Dialect = "openai"
    kind: Literal["body"] = "body"


UNREADABLE_BODY = Problem(
    400, "invalid_request", "the body cannot be read: it takes too much time or memory; send less"
)


@dataclass(frozen=True)
class BodyFile:
    """A file that was in a body."""

    name: str  # of its field
    path: str


@dataclass(frozen=True)
class ParsedBody:
    """What a body holds. In JSON an `image_url` that held a picture is `data:` and the number of its file."""

    values: dict[str, Any]
    files: tuple[BodyFile, ...]
    kind: Literal["parsed"] = "parsed"


@dataclass(frozen=True)
class DecoderReady:
    """The process waits for requests."""

    confinement: tuple[str, ...]  # what keeps its decoding from files and the network: "landlock", "seccomp"
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True)
class DecodedImage:
    """A picture that was decoded and written as a PNG."""

    width: int  # as written, after any fit
    height: int
    format: str  # Pillow's name of the file's
    mode: str  # of the PNG: L, LA, RGB, RGBA, I;16, or with 16 bits LA;16, RGB;16, RGBA;16
    notes: tuple[str, ...]  # what was converted, guessed or left out, except what a reader of the PNG says again
    sha256: str  # of the file as it came
    has_transparency: bool  # some of it is less than opaque
    original_size: tuple[int, int]  # width and height, upright, before any fit
    texts: dict[str, str] = field(default_factory=dict[str, str])  # of the file, where these were asked for
    kind: Literal["decoded"] = "decoded"


@dataclass(frozen=True)
class DecodingFailed:
    """There is no picture, or no body, and why."""

    problem: Problem
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True)
class DecoderCrashed:
    """The process of this upload ended without an answer; the next upload has another."""

    status: int  # as `os.waitstatus_to_exitcode` has it
    kind: Literal["crashed"] = "crashed"


DecoderReply = DecoderReady | DecodedImage | ParsedBody | DecodingFailed | DecoderCrashed
