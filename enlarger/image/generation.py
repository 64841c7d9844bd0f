"""How a picture was made, in its file: our JSON, the text that other programs read, and IPTC's digital source type.

Without torch.
"""

import io
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, cast
from xml.sax.saxutils import escape, unescape

from PIL import Image, ImageCms

from enlarger.image.metadata import EXIF_DIRECTORY, LABELS, MAX_IN_JPEG, PARAMETERS_KEY, XMP_PNG_KEY, read_file_metadata
from enlarger.image.watermark import read_watermark
from enlarger.requests import DEFAULT_UPSCALE_STRENGTH
from enlarger.sampler_names import menu_name, parse_sampler

Json = dict[str, Any]

METADATA_KEY = "enlarger"  # of the JSON in PNG files, and of its version in that
IMAGE_DESCRIPTION, USER_COMMENT, UNICODE_PREFIX = 0x010E, 0x9286, b"UNICODE\0"  # EXIF
LOADED_PIXELS = 178_956_970  # of a file that is asked what made it; Pillow opens no larger ones by itself
SURE_SHARE = 44 / 48  # of a watermark's bits: by chance one picture in a billion has so many
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
_DESCRIPTION = (
    '<rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:enlarger="urn:enlarger:generation">'
    "<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>"
    "<enlarger:Generation>{text}</enlarger:Generation></rdf:Description>"
)
_OWN_DESCRIPTION = re.compile(
    r'<rdf:Description [^>]*xmlns:enlarger="urn:enlarger:generation">.*?</rdf:Description>', re.DOTALL
)
_SOURCE_TYPE = re.compile(
    r'<Iptc4xmpExt:DigitalSourceType>.*?</Iptc4xmpExt:DigitalSourceType>|\sIptc4xmpExt:DigitalSourceType="[^"]*"',
    re.DOTALL,
)
_GENERATION = re.compile(r"<enlarger:Generation>(.*?)</enlarger:Generation>", re.DOTALL)


def digital_source_type(metadata: Json) -> str:
    """The IPTC term, a URL, for what a task does: make a picture, remake parts of one, or enlarge it.

    https://cv.iptc.org/newscodes/digitalsourcetype
    """
    if metadata["task"] == "generate":
        return f"{SOURCE_TYPES}trainedAlgorithmicMedia"
    is_diffusion = metadata["task"] != "upscale" or metadata["options"].get("solver") is not None
    return f"{SOURCE_TYPES}{'compositeWithTrainedAlgorithmicMedia' if is_diffusion else 'algorithmicallyEnhanced'}"


def a1111_parameters(metadata: Json, size: tuple[int, int]) -> str:
    """The metadata as A1111 writes it: prompt, negative prompt, then names with values. `size` is (width, height).

    Of a picture that was enlarged after it was generated, its size before is said there, and how it was enlarged.
    """
    options: Json = metadata["options"]
    enlarged: float = options.get("upscale", 1) if metadata["task"] == "generate" else 1
    width, height = (round(side / enlarged) for side in size)
    remaking = options.get("upscale_strength", DEFAULT_UPSCALE_STRENGTH) if options.get("tile") else None
    solver, spacing = parse_sampler(options.get("solver"), options.get("spacing"))
    fields = {
        "Steps": options.get("steps"),
        "Sampler": None if solver is None else menu_name(solver, spacing),
        "CFG scale": options.get("guidance"),
        "Seed": metadata["seeds"][0],
        "Size": f"{width}x{height}",
        "Model": metadata["model"],
        "Denoising strength": remaking if enlarged > 1 else options.get("strength"),
        "Clip skip": options.get("clip_skip"),
        "Hires upscale": enlarged if enlarged > 1 else None,
        "Version": f"enlarger {metadata['enlarger']}",
    }
    negative = options.get("negative")
    lines = [
        str(options.get("prompt", "")),
        *([f"Negative prompt: {negative}"] if negative else []),
        ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None),
    ]
    return "\n".join(lines).replace("\0", " ").encode("utf-8", "replace").decode()


def add_generation(
    info: Mapping[Any, Any], metadata: Json, format_name: str, size: tuple[int, int]
) -> tuple[Json, tuple[str, ...]]:
    """The metadata `info` of a picture with how it was made, as `metadata.save_options` takes it, and notes.

    XMP holds the JSON and the digital source type; EXIF A1111's text, unless it holds a comment already; PNG both as
    texts of its own, which programs look for. A picture that was enlarged keeps the text that it came with.
    """
    info = dict(info)
    if format_name in ("BMP", "GIF"):
        return info, (f"{format_name} holds no generation metadata: left out",)
    notes, text, texts = list[str](), json.dumps(metadata), dict(info.pop("texts", {}))
    told, parameters = texts.pop(PARAMETERS_KEY, None), a1111_parameters(metadata, size)
    if told is not None and metadata["task"] == "upscale":  # how the picture was made, which is only larger now
        parameters = told
    if format_name == "PNG":
        texts |= {PARAMETERS_KEY: parameters, METADATA_KEY: text}
        text = ""
    info |= {"texts": texts} if texts else {}
    packet = info.get("xmp", _PACKET.encode()).decode("utf-8", "replace")
    if "</rdf:RDF>" not in packet:
        packet = _PACKET
        notes.append("the input's XMP is damaged: left out")
    source = digital_source_type(metadata)
    xmp, most = _with_description(packet, source, text), MAX_IN_JPEG["xmp"] if format_name == "JPEG" else sys.maxsize
    if len(xmp) > most and packet != _PACKET:
        xmp = _with_description(_PACKET, source, text)
        notes.append("the input's XMP is larger than a JPEG file holds: left out; PNG holds it")
    if len(xmp) > most:
        xmp = _with_description(_PACKET, source, "")
        notes.append("the generation metadata is too long for a JPEG file: left out; PNG holds it")
    info["xmp"] = xmp
    if format_name != "PNG":
        info["exif"] = _with_comment(info.get("exif"), parameters)
    return info, tuple(notes)


def _with_description(packet: str, source: str, text: str) -> bytes:
    """An XMP packet that says how its picture was made, and nothing of how its input was."""
    packet = _SOURCE_TYPE.sub("", _OWN_DESCRIPTION.sub("", packet))
    made = _DESCRIPTION.format(source=source, text=escape(text))
    head, end, tail = packet.rpartition("</rdf:RDF>")
    return f"{head}{made}{end}{tail}".encode()


def _with_comment(data: bytes | None, text: str) -> bytes:
    exif = Image.Exif()
    if data is not None:
        exif.load(data)
    directory = exif.get_ifd(EXIF_DIRECTORY)
    found: Any = directory.get(USER_COMMENT, b"")
    comment = found if isinstance(found, bytes) else str(found).encode()
    is_ours = comment.startswith(UNICODE_PREFIX) and "Version: enlarger" in _decoded(comment)
    if is_ours or not comment[len(UNICODE_PREFIX) :].strip(b"\0 "):
        directory[USER_COMMENT] = UNICODE_PREFIX + text.encode("utf-16-be")
    return exif.tobytes()


def _decoded(comment: bytes) -> str:
    return comment[len(UNICODE_PREFIX) :].decode("utf-16-be", "replace")


def read_metadata(image: Image.Image) -> Json | None:
    """The metadata in a picture's file; None where there is none of ours."""
    if image.width * image.height <= LOADED_PIXELS:
        image.load()  # texts can come after the pixels; ours come before
    for text in (image.info.get(METADATA_KEY), _generation_in_xmp(image), image.getexif().get(IMAGE_DESCRIPTION)):
        try:
            metadata: Any = json.loads(str(text))
        except ValueError:
            continue
        if isinstance(metadata, dict) and METADATA_KEY in metadata:
            return cast("Json", metadata)
    return None


def _generation_in_xmp(image: Image.Image) -> str | None:
    found: Any = image.info.get("xmp", image.info.get(XMP_PNG_KEY, b""))
    packet = found if isinstance(found, str) else bytes(found).decode("utf-8", "replace")
    match = _GENERATION.search(packet)
    return None if match is None else unescape(match[1])


def describe_file(image: Image.Image) -> Json:
    """What an opened picture's file says of itself, for people: how it was made, and what metadata is in it."""
    about, metadata = read_file_metadata(image), read_metadata(image)
    comment: Any = image.getexif().get_ifd(EXIF_DIRECTORY).get(USER_COMMENT)
    is_text = isinstance(comment, bytes) and comment.startswith(UNICODE_PREFIX)
    source = re.search(re.escape(SOURCE_TYPES) + r"(\w+)", str(about.get("xmp", b""), "utf-8", "replace"))
    frames: int = getattr(image, "n_frames", 1)
    return {
        "holds": f"a picture, {image.format}",
        "size": f"{image.width} x {image.height}",
        "frames": frames if frames > 1 else None,
        "profile": _profile_name(image.info.get("icc_profile")),
        "metadata": [LABELS[key] for key in about] or None,
        "source": None if source is None else source[1],
        "watermark": _watermark(image),
        "text": image.info.get(PARAMETERS_KEY) or (_decoded(comment) if is_text else None),
        "generation": metadata,
    }


def _watermark(image: Image.Image) -> str | None:
    share = read_watermark(image) if image.width * image.height <= LOADED_PIXELS else None
    return "SDXL's, invisible" if share is not None and share >= SURE_SHARE else None


def _profile_name(data: bytes | None) -> str | None:
    if not data:
        return None
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data))).strip()
    except Exception:  # noqa: BLE001 - damaged profiles raise anything
        return "one that cannot be read"
