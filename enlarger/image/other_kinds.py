"""Kinds of files that are known and not read: what each is called, and how a picture is made of it. Without torch."""

from collections.abc import Collection
from dataclasses import dataclass

HEAD_BYTES = 64  # bytes at a file's start that say what it is
TGA_END = b"TRUEVISION-XFILE.\0"


@dataclass(frozen=True)
class OtherKind:
    """What a file is, and the way to a picture that can be read."""

    name: str
    way_out: str = "convert it first"
    format: str | None = None  # Pillow's name, of one that is read where a library is installed


def _by(program: str) -> str:
    return f"convert it to PNG first, as `{program}` does"


RAW = OtherKind(
    "a camera's raw photo",
    "develop it first: export it as TIFF or JPEG from the camera's program, or as `darktable-cli in.dng out.tif` does",
)
_SHORTCUT = OtherKind("a shortcut", "take the picture that it leads to")
_HEIC = OtherKind("a HEIC photo", f"install enlarger[heif], or {_by('heif-convert in.heic out.png')}", "HEIF")
_JXL = OtherKind("a JPEG XL file", f"install enlarger[jxl], or {_by('djxl in.jxl out.png')}", "JXL")
_SVG = OtherKind("an SVG drawing", f"{_by('rsvg-convert -w 3000 in.svg -o out.png')}, in any size")
_HTML = OtherKind("an HTML page", "download the picture itself")
_VIDEO = OtherKind("a film", f"{_by('ffmpeg -i in.mp4 %04d.png')}, a file for each frame")
_JP2 = OtherKind("a JPEG 2000 file", _by("opj_decompress -i in.jp2 -o out.png"))


def _magick(suffix: str) -> str:
    return _by(f"magick in.{suffix} out.png")


KINDS_BY_MAGIC: dict[bytes, OtherKind] = {
    b"%PDF": OtherKind("a PDF", _by("pdftoppm -png -r 300 in.pdf out")),
    b"%!PS": OtherKind("a PostScript file", _magick("eps")),
    b"\xc5\xd0\xd3\xc6": OtherKind("an EPS file", _magick("eps")),
    b"8BPS": OtherKind("a Photoshop file", _magick("psd[0]")),
    b"gimp xcf": OtherKind("a GIMP file", "export it as PNG from GIMP first"),
    b"SIMPLE  =": OtherKind("a FITS file"),
    b"<svg": _SVG,
    b"<?xml": OtherKind("an XML file"),
    b"<!doctype html": _HTML,
    b"<html": _HTML,
    b"version https://git-lfs": OtherKind("a Git LFS pointer", "fetch the picture itself with `git lfs pull`"),
    b"PK\x03\x04": OtherKind("a ZIP archive", "unpack it first"),
    b"\x1f\x8b": OtherKind("a gzip archive", "unpack it first"),
    b"\0\0\1\0": OtherKind("an icon file", _magick("ico")),
    b"\0\0\2\0": OtherKind("a cursor file", _magick("cur")),
    b"\xff\x0a": _JXL,
    b"\0\0\0\x0cJXL ": _JXL,
    b"\0\0\0\x0cjP  ": _JP2,
    b"\xff\x4f\xff\x51": _JP2,
    b"DDS ": OtherKind("a DDS texture", _magick("dds")),
    b"qoif": OtherKind("a QOI file", _magick("qoi")),
    b"\x76\x2f\x31\x01": OtherKind("an OpenEXR file", _magick("exr")),
    b"#?RADIANCE": OtherKind("a Radiance HDR file", _magick("hdr")),
    b"\x1a\x45\xdf\xa3": _VIDEO,
    b"\x8aMNG": OtherKind("an MNG animation", _magick("mng")),
    b"FUJIFILMCCD-RAW": RAW,
    **dict.fromkeys((b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM"), RAW),
    b"II\xbc\1": OtherKind("a JPEG XR file", _by("JxrDecApp -i in.jxr -o out.bmp")),
    b"FLIF": OtherKind("a FLIF file", _by("flif -d in.flif out.png")),
    b"BPG\xfb": OtherKind("a BPG file", _by("bpgdec -o out.png in.bpg")),
    **dict.fromkeys(
        (b"\x0a\2\1\1", b"\x0a\5\1\1", b"\x0a\5\1\4", b"\x0a\5\1\x08"), OtherKind("a PCX file", _magick("pcx"))
    ),
    b"\xabKTX": OtherKind("a KTX texture"),
    b"\xd7\xcd\xc6\x9a": OtherKind("a WMF drawing", _by("soffice --convert-to png in.wmf")),
    b"\1\0\0\0\x6c\0\0\0": OtherKind("an EMF drawing", _by("soffice --convert-to png in.emf")),
    b"icns": OtherKind("an icon file of macOS", _by("icns2png -x in.icns")),
    b"Rar!": OtherKind("a RAR archive", "unpack it first"),
    b"7z\xbc\xaf": OtherKind("a 7z archive", "unpack it first"),
    b"[internetshortcut]": _SHORTCUT,
    b"L\0\0\0\1\x14\2\0": _SHORTCUT,
}
_DRAWING = OtherKind("a drawing of Krita or another program", "export it as PNG from there first")
KINDS_BY_PLACE: tuple[tuple[int, bytes, OtherKind], ...] = (  # that are told by what lies further on
    (6, b"HEAPCCDR", RAW),
    (4, b"ftypcrx ", RAW),
    (30, b"mimetypeapplication/x-krita", _DRAWING),
    (30, b"mimetypeimage/openraster", _DRAWING),
    (8, b"AVI LIST", _VIDEO),
    (8, b"WAVEfmt ", OtherKind("a sound")),
)
KINDS_BY_BRAND = {b"heic": _HEIC, b"heix": _HEIC, b"hevc": _HEIC, b"heim": _HEIC, b"mif1": _HEIC, b"msf1": _HEIC}
AVIF = OtherKind(
    "an AVIF picture",
    "install a newer Pillow, or convert it to PNG first, as `avifdec in.avif out.png` does",
    "AVIF",
)


def other_kind(head: bytes, end: bytes = b"", *, read: Collection[str] = ()) -> OtherKind | None:
    """What a file is by its first `HEAD_BYTES` and its last bytes; None: nothing of these, or of a format in `read`."""
    kind = _kind_of(head, end)
    return None if kind is not None and kind.format in read else kind


def _kind_of(head: bytes, end: bytes) -> OtherKind | None:
    for place, magic, kind in KINDS_BY_PLACE:
        if head[place:].startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"avif", b"avis"):
            return AVIF
        return KINDS_BY_BRAND.get(head[8:12], _VIDEO)
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"1234567Ff" and head[2:3].isspace():
        return OtherKind("a PPM, PGM, PBM or PFM file", _magick("ppm"))
    if end.endswith(TGA_END) or _is_bare_tga(head):
        return OtherKind("a TGA file", _magick("tga"))
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        return _SVG
    found = (kind for magic, kind in KINDS_BY_MAGIC.items() if head.startswith(magic) or text.startswith(magic))
    return next(found, None)


def _is_bare_tga(head: bytes) -> bool:
    """Whether a header without magic holds what a TGA's must: kind, depth, no reserved bits, and a size."""
    if len(head) < 18 or head[16] not in (8, 15, 16, 24, 32) or head[17] & 0xC0:
        return False
    has_kind = head[2] in (1, 9) if head[1] == 1 else head[1] == 0 and head[2] in (2, 3, 10, 11) and not any(head[3:8])
    return has_kind and any(head[12:14]) and any(head[14:16])
