"""What a picture's file says beside its pixels: EXIF, XMP, IPTC, resolution and texts, read and written. No torch."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from enlarger.image.xmp import for_upright_copy, with_size, without_place

Strip = Literal["none", "gps", "all"]
IMAGE_UNIQUE_ID = 0xA420  # an EXIF tag
INFO_KEYS = ("exif", "xmp", "iptc", "dpi", "texts")  # in `info` of our PIL images
PARAMETERS_KEY = "parameters"  # of the text that A1111's web UI writes into PNG files and many programs read
DESCRIPTIVE_TAGS = (  # of a file's first directory; what tells how pixels are stored is the writer's
    0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0),
)  # fmt: skip
EXIF_DIRECTORY, GPS_DIRECTORY, INTEROP_DIRECTORY = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop
MAKER_NOTE = 0x927C
UNTOLD_DPI = (1.0, 1.0)  # what Pillow gives of a TIFF file that tells none
PIXEL_X, PIXEL_Y = 0xA002, 0xA003
XMP_TIFF_TAG, IPTC_TIFF_TAG, IPTC_RESOURCE = 700, 33723, 0x0404
XMP_PNG_KEY = "XML:com.adobe.xmp"
PLACES_OF_IPTC = (26, 27, 90, 92, 95, 100, 101)  # location, city, province, country
MAX_EXIF = 65_533 - 6  # bytes that a JPEG file holds
MAX_IN_JPEG = {"xmp": 65_533 - 29, "iptc": 65_532 - 26}  # likewise
KEYS_WITH_ORIENTATION = ("exif", "Raw profile type exif", "xmp", XMP_PNG_KEY)
CANNOT_HOLD = {
    "PNG": ("iptc",),
    "WEBP": ("iptc", "dpi"),
    "AVIF": ("iptc", "dpi"),
    "BMP": ("exif", "xmp", "iptc"),
    "GIF": ("exif", "xmp", "iptc", "dpi"),
}
LABELS = {"exif": "EXIF", "xmp": "XMP", "iptc": "IPTC", "dpi": "resolution", "texts": "texts"}
COMMENT, MAX_COMMENT = "Comment", 65_533  # the one text that a JPEG file holds
JPEG_COMMENT = ("JPEG", COMMENT)
TEXTS_OF_THE_FILE = re.compile(  # not of the picture: other blocks as text, and what wrote the file
    r"XML:com\.adobe\.xmp|Raw profile type .*|Software|enlarger|(?i:exif|tiff|iptc|icc|png|jpeg|date):.*"
)


def read_file_metadata(image: Image.Image) -> dict[str, Any]:
    """The metadata of an opened picture by `INFO_KEYS`, its orientation reset. Damaged blocks are left out."""
    found: dict[str, Any] = {}
    readers = (_read_exif, _read_xmp, _read_iptc, _read_dpi, _read_texts)
    for key, read in zip(INFO_KEYS, readers, strict=True):
        try:
            value = read(image)
        except Exception:  # noqa: BLE001 - a damaged block must not cost the picture
            continue
        if value:
            found[key] = value
    return found


def upright_info(image: Image.Image) -> dict[Any, Any]:
    """The `info` of an opened picture for what was turned upright already, so that it is not turned again.

    A picture with it says of itself what the file does.
    """
    found = read_file_metadata(image)
    kept = {key: value for key, value in image.info.items() if key not in KEYS_WITH_ORIENTATION}
    iptc = {"photoshop": {IPTC_RESOURCE: found["iptc"]}} if "iptc" in found else {}
    return kept | found | iptc


def _read_exif(image: Image.Image) -> bytes | None:
    source, kept = image.getexif(), Image.Exif()
    for tag in DESCRIPTIVE_TAGS:
        if tag in source:
            kept[tag] = source[tag]
    for directory in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if values := _directory(source, directory):
            kept.get_ifd(directory).update(values)
    return kept.tobytes() if len(kept) or any(kept.get_ifd(each) for each in (EXIF_DIRECTORY, GPS_DIRECTORY)) else None


def _directory(exif: Image.Exif, tag: int) -> dict[int, Any]:
    """A directory of EXIF with the one in it, of which Pillow gives the place in the file."""
    values = {name: value for name, value in exif.get_ifd(tag).items() if name != INTEROP_DIRECTORY}
    interop = exif.get_ifd(INTEROP_DIRECTORY) if tag == EXIF_DIRECTORY else {}
    return values | ({INTEROP_DIRECTORY: dict(interop)} if interop else {})


def _read_xmp(image: Image.Image) -> bytes | None:
    found: Any = image.info.get("xmp", image.info.get(XMP_PNG_KEY))
    if found is None and isinstance(image, TiffImagePlugin.TiffImageFile):
        found = image.tag_v2.get(XMP_TIFF_TAG)
    data = found.encode() if isinstance(found, str) else found
    return None if data is None else for_upright_copy(bytes(data))


def _read_iptc(image: Image.Image) -> bytes | None:
    """The records, as TIFF holds them, Photoshop's block in JPEG, and `info` of our own pictures."""
    if isinstance(image.info.get("iptc"), bytes):
        return image.info["iptc"]
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    blocks: Any = image.tag_v2 if is_tiff else image.info.get("photoshop", {})
    found: Any = blocks.get(IPTC_TIFF_TAG if is_tiff else IPTC_RESOURCE)
    return found if isinstance(found, bytes) else None


def _read_dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi: Any = image.info.get("dpi")
    across, down = (float(value) for value in dpi or (0, 0))
    is_told = across > 0 and down > 0 and (across, down) != UNTOLD_DPI
    return (across, down) if is_told else None


def _read_texts(image: Image.Image) -> dict[str, str]:
    """By their keys: those of a PNG file, a JPEG file's comment, or what `info` of our own pictures holds."""
    if "texts" in image.info:
        return image.info["texts"]
    if image.format == "JPEG":
        comment: Any = image.info.get("comment", b"")
        return {COMMENT: bytes(comment).decode("utf-8", "replace")} if comment else {}
    about = image.info.items() if image.format == "PNG" else ()
    texts = {str(key): str(value) for key, value in about if isinstance(value, str)}
    return {key: value for key, value in texts.items() if not TEXTS_OF_THE_FILE.fullmatch(key)}


def without(info: Mapping[Any, Any], strip: Strip) -> dict[str, Any]:
    """The metadata that is left: all, all but the place, or none."""
    kept = {key: info[key] for key in INFO_KEYS if key in info and strip != "all"}
    if strip == "gps":
        if "exif" in kept:
            kept["exif"] = _exif_without(kept["exif"], GPS_DIRECTORY)
        if "xmp" in kept:
            packet = without_place(kept.pop("xmp"))
            kept |= {} if packet is None else {"xmp": packet}
        if "iptc" in kept:
            records = _iptc_records(kept["iptc"])
            kept["iptc"] = b"".join(one for one in records if one[1] != 2 or one[2] not in PLACES_OF_IPTC)
    return kept


def _exif_without(data: bytes, tag: int) -> bytes:
    """Without a directory, or without a tag of the inner one."""
    exif, kept = Image.Exif(), Image.Exif()
    exif.load(data)
    for name, value in exif.items():
        if name not in (EXIF_DIRECTORY, GPS_DIRECTORY):
            kept[name] = value
    for directory in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if directory != tag and (values := _directory(exif, directory)):
            kept.get_ifd(directory).update({name: value for name, value in values.items() if name != tag})
    return kept.tobytes()


def _iptc_records(data: bytes) -> list[bytes]:
    """The records one by one; what is behind the last whole one is left out."""
    records, start = list[bytes](), 0
    while start + 5 <= len(data) and data[start] == 0x1C:
        end = start + 5 + int.from_bytes(data[start + 3 : start + 5])
        records.append(data[start:end])
        start = end
    return records


def _with_size(data: bytes, size: tuple[int, int]) -> bytes:
    """EXIF whose size tags, where it has them, tell the picture's (width, height), upright."""
    exif = Image.Exif()
    exif.load(data)
    for tag in set(exif) - {*DESCRIPTIVE_TAGS, EXIF_DIRECTORY, GPS_DIRECTORY}:
        del exif[tag]  # the orientation, and the size before
    inner = exif.get_ifd(EXIF_DIRECTORY)
    inner.update({tag: value for tag, value in ((PIXEL_X, size[0]), (PIXEL_Y, size[1])) if tag in inner})
    return exif.tobytes()


def with_unique_id(data: bytes | None, unique_id: str) -> bytes:
    """EXIF that names its picture by 32 hexadecimal digits."""
    exif = Image.Exif()
    if data is not None:
        exif.load(data)
    exif.get_ifd(EXIF_DIRECTORY)[IMAGE_UNIQUE_ID] = unique_id
    return exif.tobytes()


def save_options(
    info: Mapping[Any, Any], format_name: str, size: tuple[int, int], strip: Strip = "none"
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Pillow's options that write the metadata of `info` into a file, and notes of what the format cannot hold."""
    kept, notes, options = without(info, strip), list[str](), dict[str, Any]()
    if strip == "gps" and "xmp" in info and "xmp" not in kept:
        notes.append("the input's XMP cannot be taken apart to leave the place out: left out")
    lost = [LABELS[key] for key in CANNOT_HOLD.get(format_name, ()) if key in kept]
    notes += [f"{format_name} holds no {' and no '.join(lost)}: left out"] if lost else []
    kept = {key: value for key, value in kept.items() if key not in CANNOT_HOLD.get(format_name, ())}
    if "exif" in kept:
        exif = _with_size(kept["exif"], size)
        if format_name == "JPEG" and len(exif) > MAX_EXIF:
            exif = _exif_without(exif, MAKER_NOTE)
            notes.append("the maker's notes in EXIF are larger than a JPEG file holds: left out")
        if format_name != "JPEG" or len(exif) <= MAX_EXIF:
            options["exif"] = exif
        else:
            notes.append("EXIF is larger than a JPEG file holds: left out")
    if "xmp" in kept:
        kept["xmp"] = with_size(kept["xmp"], size)
    for key, most in MAX_IN_JPEG.items() if format_name == "JPEG" else ():
        if len(kept.get(key, b"")) > most:
            del kept[key]
            notes.append(f"{LABELS[key]} is larger than a JPEG file holds: left out")
    if "dpi" in kept:
        options["dpi"] = kept["dpi"]
    lost_texts = [key for key in kept.get("texts", {}) if format_name != "PNG" and (format_name, key) != JPEG_COMMENT]
    if lost_texts:
        notes.append(f"{format_name} holds no texts ({', '.join(lost_texts)}): left out")
    if format_name == "TIFF":
        return _tiff_options(options, kept), tuple(notes)
    if format_name == "PNG":
        texts = PngImagePlugin.PngInfo()
        for key, text in kept.get("texts", {}).items():
            (texts.add_text if key == PARAMETERS_KEY else texts.add_itxt)(key, text)
        if "xmp" in kept:
            texts.add_itxt(XMP_PNG_KEY, kept["xmp"].decode("utf-8", "replace"))
        options["pnginfo"] = texts
    elif "xmp" in kept:
        options["xmp"] = kept["xmp"]
    if format_name == "JPEG" and COMMENT in kept.get("texts", {}):
        options["comment"] = kept["texts"][COMMENT].encode()[:MAX_COMMENT]
    if "iptc" in kept:
        options["extra"] = _photoshop_block(kept["iptc"])
    return options, tuple(notes)


def _tiff_options(options: dict[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The same as tags: in TIFF everything is one."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if "exif" in options:
        exif = Image.Exif()
        exif.load(options["exif"])
        for tag in exif:
            tags[tag] = _directory(exif, tag) if tag in (EXIF_DIRECTORY, GPS_DIRECTORY) else exif[tag]
    for key, tag, kind in (("xmp", XMP_TIFF_TAG, 1), ("iptc", IPTC_TIFF_TAG, 7)):
        if key in kept:
            tags.tagtype[tag] = kind
            tags[tag] = kept[key]
    return {name: value for name, value in options.items() if name != "exif"} | {"tiffinfo": tags}


def _photoshop_block(iptc: bytes) -> bytes:
    """The JPEG segment APP13 that holds IPTC records."""
    resource = b"8BIM" + IPTC_RESOURCE.to_bytes(2) + b"\0\0" + len(iptc).to_bytes(4) + iptc + b"\0" * (len(iptc) % 2)
    block = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + (len(block) + 2).to_bytes(2) + block
