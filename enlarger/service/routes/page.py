"""The web page: the files of a list made at import, and nothing else on the disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from enlarger.service.faults import refuse
from enlarger.service.routes.incoming import printable

router = APIRouter(include_in_schema=False)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: bytes
    type: str
    tag: str


def read_page() -> Mapping[str, PageFile]:
    """The files of the package's `page` folder, by name."""
    folder = files("enlarger.service") / "page"
    found: dict[str, PageFile] = {}
    for item in folder.iterdir() if folder.is_dir() else ():
        type_ = TYPES.get("." + item.name.rpartition(".")[2])
        if type_ is not None and item.is_file():
            content = item.read_bytes()
            found[item.name] = PageFile(content, type_, f'"{sha256(content).hexdigest()[:32]}"')
    return found


PAGE = read_page()


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The page itself."""
    return _answer(request, INDEX)


@router.api_route("/page/{file}", methods=["GET", "HEAD"])
async def part(request: Request, file: str) -> Response:
    """What the page loads."""
    return _answer(request, file)


def _answer(request: Request, name: str) -> Response:
    found = PAGE.get(name)
    if found is None:
        raise refuse(404, "not_found", f"the page has no file {printable(name)!r}")
    headers = {"ETag": found.tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers | {"Content-Type": found.type})
