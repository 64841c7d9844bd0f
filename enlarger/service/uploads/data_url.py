"""Pictures inside of data: URLs."""

import binascii
import re
from pathlib import Path

from enlarger.image.decode import one_line
from enlarger.service.problems import ProblemError, problem_error

LINE_BREAKS = dict.fromkeys(map(ord, "\r\n"))  # that encoders of mail and `base64 FILE` put in
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9-]+=[^;,]*)*;base64,", re.IGNORECASE)


def is_data_url(url: str) -> bool:
    """Whether an address holds the picture itself, or means to."""
    return url[:5].lower() == "data:"


def write_data_url(url: str, out: Path, max_bytes: int, param: str = "image") -> None:
    """Write the bytes of a `data:image/...;base64,...` URL to a file. Raises ProblemError.

    The media type it states is not relied on: what the bytes are is found when they are decoded.
    """
    prefix = _DATA_URL.match(url)
    if prefix is None:
        text = (
            f"{param}: expected a data URL that begins with data:image/ and holds base64, as data:image/png;base64,..."
        )
        raise problem_error(400, "invalid_image_url", text, param)
    base64_text = url[prefix.end() :].translate(LINE_BREAKS)
    if len(base64_text) // 4 * 3 > max_bytes + 2:
        raise image_too_large(param, max_bytes)
    try:
        data = binascii.a2b_base64(base64_text.encode("ascii"), strict_mode=True)
        if len(base64_text) % 4 or len(data) != len(base64_text) // 4 * 3 - base64_text[-2:].count("="):
            raise ValueError("Excess padding")
    except ValueError as error:
        text = f"{param}: the data URL is not base64 ({one_line(error)}); encode the file's bytes again"
        raise problem_error(400, "invalid_base64_image", text, param) from None
    if not data:
        raise problem_error(400, "empty_image_file", f"{param}: the data URL is empty; send the picture's bytes", param)
    if len(data) > max_bytes:
        raise image_too_large(param, max_bytes)
    out.write_bytes(data)


def image_too_large(param: str, max_bytes: int) -> ProblemError:
    """The problem of a picture file of too many bytes."""
    text = f"{param}: is more than {max_bytes:,} bytes; shrink the picture or compress it better"
    return problem_error(400, "image_file_too_large", text, param)
