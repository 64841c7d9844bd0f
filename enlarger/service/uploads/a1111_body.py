"""A JSON body of AUTOMATIC1111's API, found out in the decoder's process: its pictures are base64 or data: URLs."""

from pathlib import Path
from typing import Any, cast

from enlarger.service.problems import problem_error
from enlarger.service.uploads.data_url import is_data_url, write_data_url
from enlarger.service.uploads.form_body import check_text_bytes
from enlarger.service.uploads.json_body import parse_json_object
from enlarger.service.uploads.messages import BodyFile, ParsedBody, ParseRequest

PICTURES, MASK, NAMED_PICTURES = ("image", "init_images"), "mask", "imageList"
DATA_URL_PREFIX = "data:image/png;base64,"  # for bare base64; what the bytes are is found when they are decoded


class _Files:
    """The pictures of a body, written as they are found."""

    def __init__(self, request: ParseRequest) -> None:
        self.request, self.files, self.num_text_bytes = request, list[BodyFile](), 0

    def write(self, text: object, field: str) -> None:
        """Write one. Raises ProblemError for what is no base64, and for one too many."""
        request = self.request
        if not isinstance(text, str):
            raise problem_error(400, "invalid_value", f"{field} is no text, expected a picture in base64", field)
        if text[:4].lower() == "http":
            raise problem_error(400, "invalid_image_url", f"{field} is an address, expected base64", field)
        if len(self.files) >= request.max_files:
            message = f"found more than {request.max_files} pictures; send fewer at a time"
            raise problem_error(400, "unsupported", message, field)
        self.num_text_bytes += len(text)
        path = f"{request.out}-{len(self.files)}"
        url = text if is_data_url(text) else DATA_URL_PREFIX + text
        write_data_url(url, Path(path), request.max_mask_bytes if field == MASK else request.max_image_bytes, field)
        self.files.append(BodyFile(field, path))


def parse_a1111(request: ParseRequest) -> ParsedBody:
    """The values of a body without its pictures, and these as files by their fields. Raises ProblemError."""
    body = Path(request.source).read_bytes()
    values, files = parse_json_object(body), _Files(request)
    for field in PICTURES:
        pictures = values.pop(field, None)
        for picture in _as_list(pictures):
            files.write(picture, field)
    for item in _as_list(values.pop(NAMED_PICTURES, None)):
        picture = cast("dict[str, Any]", item).get("data") if isinstance(item, dict) else item
        files.write(picture, NAMED_PICTURES)
    if (mask := values.pop(MASK, None)) not in (None, ""):
        files.write(mask, MASK)
    check_text_bytes(len(body) - files.num_text_bytes, request)
    return ParsedBody(values, tuple(files.files))


def _as_list(value: object) -> list[object]:
    if value is None or value == "":
        return []
    return cast("list[object]", value) if isinstance(value, list) else [value]
