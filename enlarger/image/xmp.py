"""XMP packets: what is true of the picture that they came with, and not of its copy, is set or taken out. No torch."""

import re
from collections.abc import Callable
from xml.dom import expatbuilder
from xml.parsers.expat import ExpatError

_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|\s*>))[2-8]""")
_SIZES = tuple(
    re.compile(rb"((?:" + names + rb""")(?:\s*=\s*["']|\s*>))\d+""")
    for names in (rb"tiff:ImageWidth|exif:PixelXDimension", rb"tiff:ImageLength|exif:PixelYDimension")
)
_COMPANIONS = re.compile(  # of pictures and films that lie behind a picture in its file, under their usual prefixes
    r"(hdrgm|HDRGainMap|G?Container|Item|GDepth|GImage):\w+"
    r"|G?Camera:(MotionPhoto|MicroVideo)\w*|xmpNote:HasExtendedXMP"
)
_HINTS_OF_COMPANIONS = re.compile(rb"hdr-gain-map|HasExtendedXMP|HDRGainMap|ns\.google\.com/photos")
_PLACES = re.compile(
    r"(?i)(gps\w*|\w*(latitude|longt?itude|altitude)\w*|location(created|shown|name|id)?|sublocation|city|state"
    r"|province\w*|country(code|name)?|worldregion)"
)
MAX_PARSED = 2**20  # bytes of a packet that is taken apart


def for_upright_copy(packet: bytes) -> bytes:
    """A packet for a copy of the pixels alone, upright: it tells of no turning, gain map, depth map or film."""
    packet = _ORIENTATION.sub(rb"\g<1>1", packet)
    if _HINTS_OF_COMPANIONS.search(packet) is None:
        return packet
    cleaned = _without(packet, lambda name: _COMPANIONS.fullmatch(name) is not None)
    return packet if cleaned is None else cleaned


def with_size(packet: bytes, size: tuple[int, int]) -> bytes:
    """A packet whose sizes, where it tells them, are (width, height)."""
    for pattern, side in zip(_SIZES, size, strict=True):
        packet = pattern.sub(rb"\g<1>" + str(side).encode(), packet)
    return packet


def without_place(packet: bytes) -> bytes | None:
    """A packet that does not tell where its picture was taken; None where it cannot be taken apart to see to that."""
    return _without(packet, lambda name: _PLACES.fullmatch(name.rpartition(":")[2]) is not None)


def _without(packet: bytes, is_dropped: Callable[[str], bool]) -> bytes | None:
    """Without the attributes and whole elements whose "prefix:name" is dropped; None for what is no plain XML."""
    if len(packet) > MAX_PARSED or b"<!DOCTYPE" in packet:
        return None
    try:
        document = expatbuilder.parseString(packet.strip(b"\0 \t\r\n"), namespaces=False)
        for element in list(document.getElementsByTagName("*")):
            if is_dropped(element.tagName) and element.parentNode is not None:
                element.parentNode.removeChild(element)
                continue
            for name in list(element.attributes.keys()):
                if not name.startswith("xmlns") and is_dropped(name):
                    element.removeAttribute(name)
        return "".join(node.toxml() for node in document.childNodes).encode()
    except (ExpatError, ValueError, RecursionError):
        return None
