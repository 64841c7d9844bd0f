"""What a body holds, found out in the decoder's process: values, and files beside it."""

from pathlib import Path
from typing import Any, cast

from enlarger.service.problems import problem_error
from enlarger.service.uploads.a1111_body import parse_a1111
from enlarger.service.uploads.data_url import is_data_url, write_data_url
from enlarger.service.uploads.form_body import check_text_bytes, parse_multipart, parse_urlencoded
from enlarger.service.uploads.json_body import parse_json_object
from enlarger.service.uploads.messages import BodyFile, ParsedBody, ParseRequest
from enlarger.strict_json import short_repr

URL_FIELDS = {"images": "image", "mask": "mask"}  # fields of a JSON body with pictures, and what errors call these


def parse_body(request: ParseRequest) -> ParsedBody:
    """Take a body apart. Raises ProblemError."""
    if request.format == "json":
        return _parse_json(request)
    if request.format == "multipart":
        fields, files = parse_multipart(request)
    else:
        fields, files = parse_urlencoded(request), []
    values: dict[str, Any] = {}
    for name, value in fields:
        if name in values:
            raise problem_error(400, "invalid_value", f"{short_repr(name)} is there twice; give it once", name[:100])
        values[name] = value
    return ParsedBody(values, tuple(files))


def _parse_json(request: ParseRequest) -> ParsedBody:
    """A JSON object; its pictures, which are data: URLs, are written as files, and named by their numbers instead."""
    if request.dialect == "a1111":
        return parse_a1111(request)
    body = Path(request.source).read_bytes()
    values, files, num_url_bytes = parse_json_object(body), list[BodyFile](), 0
    for field, param in URL_FIELDS.items():
        references = values.get(field)
        for reference in cast("list[Any]", references if isinstance(references, list) else [references]):
            url = cast("dict[str, Any]", reference).get("image_url") if isinstance(reference, dict) else None
            if not isinstance(url, str) or not is_data_url(url):
                continue
            if len(files) >= request.max_files:
                raise problem_error(
                    400, "unsupported", f"found more than {request.max_files} pictures, expected 1", field
                )
            num_url_bytes += len(url)
            path = f"{request.out}-{len(files)}"
            write_data_url(
                url, Path(path), request.max_mask_bytes if param == "mask" else request.max_image_bytes, param
            )
            reference["image_url"] = f"data:{len(files)}"
            files.append(BodyFile(param, path))
    check_text_bytes(len(body) - num_url_bytes, request)
    return ParsedBody(values, tuple(files))
