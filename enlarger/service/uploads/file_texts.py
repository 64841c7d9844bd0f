"""The texts in a picture's file, which say what made it; read in the decoder's process."""

import json
from pathlib import Path

from PIL import Image

from enlarger.image.digest import file_sha256
from enlarger.service.uploads.messages import DecodedImage

MAX_CHARACTERS, MAX_TEXTS = 64 << 10, 8  # of a text that is answered, and how many
MAX_ENCODED_BYTES = 6 * MAX_CHARACTERS + 2  # of a text in JSON: all of them are less than MAX_REPLY_BYTES
EXIF_IFD, USER_COMMENT, UNICODE_COMMENT = 0x8769, 0x9286, b"UNICODE\0"


def read_texts(image: Image.Image, source: Path) -> DecodedImage:
    """The texts of a PNG, or of a JPEG's or WebP's comment, cut where they are long; nothing is written."""
    image.load()  # texts can come after the pixels
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    comment: object = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(UNICODE_COMMENT):
        texts["parameters"] = comment.removeprefix(UNICODE_COMMENT).decode("utf-16-be", "replace")
    texts = {key[:100]: _cut(value) for key, value in list(texts.items())[:MAX_TEXTS]}
    digest = file_sha256(source)
    size = (image.width, image.height)
    return DecodedImage(*size, str(image.format), image.mode, (), digest, False, size, texts)


def _cut(text: str) -> str:
    """A text that is not too long, in JSON neither; there a character has 12 bytes at most."""
    text = text[:MAX_CHARACTERS]
    return text if len(json.dumps(text)) <= MAX_ENCODED_BYTES else text[: MAX_ENCODED_BYTES // 12]
