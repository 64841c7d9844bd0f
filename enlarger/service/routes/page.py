"""The web page: the files of a list made at import, and nothing else on the disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from enlarger.service.problems import problem_error
from enlarger.service.routes.request_body import printable
from enlarger.service.routes.responses import names_etag

router = APIRouter(include_in_schema=False)
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
# at a line's begin its tabs, and all of it if it is a comment; its end stays, so that lines keep their numbers
FOR_READERS = re.compile(rb"^\t*(?://.*|/\*+[^*]*\*/$)?", re.MULTILINE)


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str


def without_comments(source: bytes) -> bytes:
    """JavaScript, CSS or HTML without indentation and lines of comment, which are for readers of the source."""
    return FOR_READERS.sub(b"", source)


def read_page() -> Mapping[str, PageFile]:
    """The files of the package's `page` folder as they are sent, by name."""
    folder = files("enlarger.service") / "page"
    page_files: dict[str, PageFile] = {}
    for item in folder.iterdir() if folder.is_dir() else ():
        media_type = MEDIA_TYPES.get("." + item.name.rpartition(".")[2])
        if media_type is not None and item.is_file():
            content = without_comments(item.read_bytes())
            page_files[item.name] = PageFile(content, media_type, f'"{sha256(content).hexdigest()[:32]}"')
    return page_files


PAGE_FILES = read_page()


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The page itself."""
    return _file_response(request, INDEX)


@router.api_route("/page/{file}", methods=["GET", "HEAD"])
async def part(request: Request, file: str) -> Response:
    """What the page loads."""
    return _file_response(request, file)


def _file_response(request: Request, name: str) -> Response:
    page_file = PAGE_FILES.get(name)
    if page_file is None:
        raise problem_error(404, "not_found", f"the page has no file {printable(name)!r}")
    headers = {"ETag": page_file.etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if names_etag(request.headers.get("if-none-match"), page_file.etag):
        return Response(status_code=304, headers=headers)
    return Response(page_file.content, headers=headers | {"Content-Type": page_file.media_type})
