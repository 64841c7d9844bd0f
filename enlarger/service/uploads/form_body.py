"""A form within bounds: fields as text, files written out as they come."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.uploads.data_url import image_too_large
from enlarger.service.uploads.messages import BodyFile, ParseRequest
from enlarger.strict_json import short_repr

if TYPE_CHECKING:  # it is there for type checkers alone
    from python_multipart.multipart import MultipartCallbacks

CHUNK_SIZE = 256 << 10
MAX_NAME_BYTES = 1024
TEXT_TYPES = (b"text/", b"application/json")  # of parts that are values


@dataclass
class FormPart:
    """One part of a form, while it is read."""

    headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    header_name: bytes = b""
    header_value: bytes = b""
    name: str = ""
    file: BinaryIO | None = None
    text: bytearray = field(default_factory=bytearray)


class FormReader:
    """The fields and files of a form, collected from the parser's calls."""

    def __init__(self, request: ParseRequest) -> None:
        self.request = request
        self.fields: list[tuple[str, str]] = []
        self.files: list[BodyFile] = []
        self._part, self._has_end = FormPart(), False
        self._num_fields = self._text_bytes = self._file_bytes = 0

    def read(self) -> None:
        """Read the body to its end. Raises ProblemError."""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        parser = MultipartParser(self.request.boundary.encode("latin-1"), callbacks)
        try:
            with Path(self.request.source).open("rb") as body:
                while chunk := body.read(CHUNK_SIZE):
                    parser.write(chunk)
            parser.finalize()
        finally:
            self._close_file()
        if not self._has_end:
            raise invalid_form("it is cut short: the boundary at its end is missing")

    def _end(self) -> None:
        self._has_end = True

    def _begin_part(self) -> None:
        self._part, self._file_bytes = FormPart(), 0

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def _end_header(self) -> None:
        part = self._part
        part.headers[part.header_name.lower()] = part.header_value
        part.header_name = part.header_value = b""

    def _end_headers(self) -> None:
        part, request = self._part, self.request
        _, options = parse_options_header(part.headers.get(b"content-disposition"))
        if b"name" not in options or len(options[b"name"]) > MAX_NAME_BYTES:
            raise invalid_form(
                'a part has no name, or one too long; expected Content-Disposition: form-data; name="..."'
            )
        part.name = decode_text(options[b"name"])
        content_type = part.headers.get(b"content-type", b"text/plain").lower()
        if b"filename" not in options and content_type.startswith(TEXT_TYPES):  # RFC 7578 lets files go without a name
            self._num_fields += 1
            if self._num_fields > request.max_fields:
                raise too_many_fields(request.max_fields)
            return
        if len(self.files) >= request.max_files:
            raise invalid_form(f"Too many files. Maximum number of files is {request.max_files}.")
        path = f"{request.out}-{len(self.files)}"
        self.files.append(BodyFile(part.name, path))
        part.file = Path(path).open("wb")  # noqa: SIM115  open until the part ends

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.file is not None:
            self._file_bytes += end - start
            max_bytes = max(self.request.max_image_bytes, self.request.max_mask_bytes)  # the route knows which it is
            if self._file_bytes > max_bytes:
                raise image_too_large(part.name, max_bytes)
            part.file.write(data[start:end])
            return
        self._text_bytes += end - start
        check_text_bytes(self._text_bytes, self.request)
        part.text += data[start:end]

    def _end_part(self) -> None:
        part = self._part
        if part.file is None:
            is_json = part.headers.get(b"content-type", b"").lower().startswith(b"application/json")
            text = decode_text(bytes(part.text), part.name)
            self.fields.append((part.name, _json_text(text) if is_json else text))
        self._close_file()

    def _close_file(self) -> None:
        if self._part.file is not None:
            self._part.file.close()


def parse_multipart(request: ParseRequest) -> tuple[list[tuple[str, str]], list[BodyFile]]:
    """The fields and the files of a form. Raises ProblemError."""
    reader = FormReader(request)
    try:
        reader.read()
    except FormParserError as error:
        raise invalid_form(f"it is no multipart with the boundary that its Content-Type names ({error})") from error
    return reader.fields, reader.files


def parse_urlencoded(request: ParseRequest) -> list[tuple[str, str]]:
    """The fields of a form without files. Raises ProblemError."""
    source = Path(request.source)
    check_text_bytes(source.stat().st_size, request)
    text = decode_text(source.read_bytes())
    if text.count("&") >= request.max_fields:
        raise too_many_fields(request.max_fields)
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise invalid_form("its text is not UTF-8") from error


def decode_text(text: bytes, name: str | None = None) -> str:
    """Text of a form, of the field `name`. Raises ProblemError for what is not UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        way_out = "" if name is None else f", in {short_repr(name)}; a picture needs a file name or its Content-Type"
        raise invalid_form(f"its text is not UTF-8{way_out}") from error


def _json_text(text: str) -> str:
    """The text that a JSON string is; other values as they are written."""
    try:
        value: object = json.loads(text) if text.lstrip().startswith('"') else text
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def check_text_bytes(num_bytes: int, request: ParseRequest) -> None:
    """Raises ProblemError for more text than is taken."""
    if num_bytes > request.max_text_bytes:
        message = f"the text in the body is larger than {request.max_text_bytes} bytes, the most that is taken here"
        raise problem_error(413, "payload_too_large", message)


def too_many_fields(max_fields: int) -> ProblemError:
    return invalid_form(f"Too many fields. Maximum number of fields is {max_fields}.")


def invalid_form(reason: str) -> ProblemError:
    return problem_error(400, "invalid_form", f"the form cannot be read: {reason}")
