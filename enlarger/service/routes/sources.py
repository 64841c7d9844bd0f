"""Which pictures a request names: files of its form, or references in its JSON."""

from collections.abc import Sequence

from enlarger.jsonfile import shown
from enlarger.service.faults import refuse
from enlarger.service.routes.fields import EditJson, Reference
from enlarger.service.routes.incoming import Incoming, printable
from enlarger.service.routes.workspace import Source

MASK = "mask"


def one_picture(found: Incoming) -> Source:
    """The picture of a form that has no mask."""
    image, _ = pictures_of(found, ("image",))
    return image


def pictures_of(found: Incoming, names: Sequence[str] = ("image", MASK)) -> tuple[Source, Source | None]:
    """The picture and the mask of a form. Raises Refused for files that are missing, too many, or have no use."""
    for name in found.files:
        if name not in names:
            message = f"the file {shown(name)} has no use here; expected {' and '.join(names)}"
            raise refuse(400, "unsupported", message, printable(name))
    for name in names:
        key = next((key for key in (name, f"{name}[]") if key in found.values), None)
        if key is not None:
            raise refuse(400, "invalid_value", f"{key} is text, expected a file; curl sends one with {key}=@file", key)
    images, masks = found.files.get("image", ()), found.files.get(MASK, ())
    if not images:
        raise refuse(400, "missing_parameter", "image is missing; send the picture as a file", "image")
    _check_one(len(images), "image")
    _check_one(max(len(masks), 1), MASK)
    return images[0], masks[0] if masks else None


def referred(body: EditJson) -> tuple[Source, Source | None]:
    """The picture and the mask of a JSON body. Raises Refused for references that name nothing."""
    _check_one(len(body.images), "images")
    return _address(body.images[0], "images"), None if body.mask is None else _address(body.mask, MASK)


def _check_one(count: int, name: str) -> None:
    if count != 1:
        message = f"found {count} pictures in {name}, expected 1; send a request for each"
        raise refuse(400, "unsupported", message, name)


def _address(reference: Reference, name: str) -> str:
    if reference.file_id is not None and reference.image_url is not None:
        raise refuse(400, "invalid_value", f"{name} has image_url and file_id, expected image_url alone", name)
    if reference.file_id is not None:
        message = f"{name}: there is no file {shown(reference.file_id)}, files are not stored here; send image_url"
        raise refuse(400, "image_file_not_found", message, name)
    if reference.image_url is None:
        raise refuse(400, "missing_parameter", f"{name} has no image_url; give a data: URL", name)
    return reference.image_url
