"""Which pictures a request names: files of its form, or references in its JSON."""

from collections.abc import Sequence
from pathlib import Path

from enlarger.service.problems import problem_error
from enlarger.service.routes.request_body import RequestBody, printable
from enlarger.service.routes.request_models import EditJson, Reference
from enlarger.service.routes.workspace import ImageSource
from enlarger.service.uploads.data_url import is_data_url
from enlarger.strict_json import short_repr

MASK_FIELD = "mask"


def form_image(request_body: RequestBody) -> ImageSource:
    """The picture of a form that has no mask."""
    image, _ = form_images(request_body, ("image",))
    return image


def form_images(
    request_body: RequestBody, names: Sequence[str] = ("image", MASK_FIELD)
) -> tuple[ImageSource, ImageSource | None]:
    """The picture and the mask of a form. Raises ProblemError for files that are missing, too many, or have no use."""
    for name in request_body.files:
        if name not in names:
            message = f"the file {short_repr(name)} has no use here; expected {' and '.join(names)}"
            raise problem_error(400, "unsupported", message, printable(name))
    for name in names:
        key = next((key for key in (name, f"{name}[]") if key in request_body.values), None)
        if key is not None:
            raise problem_error(
                400, "invalid_value", f"{key} is text, expected a file; curl sends one with {key}=@file", key
            )
    images, masks = request_body.files.get("image", ()), request_body.files.get(MASK_FIELD, ())
    if not images:
        raise problem_error(400, "missing_parameter", "image is missing; send the picture as a file", "image")
    _check_single(len(images), "image")
    _check_single(max(len(masks), 1), MASK_FIELD)
    return images[0], masks[0] if masks else None


def json_images(body: EditJson, request_body: RequestBody) -> tuple[ImageSource, ImageSource | None]:
    """The picture and the mask of a JSON body. Raises ProblemError for references that name nothing."""
    _check_single(len(body.images), "images")
    image = _image_source(body.images[0], "images", request_body.files.get("image", ()))
    masks = request_body.files.get(MASK_FIELD, ())
    return image, None if body.mask is None else _image_source(body.mask, MASK_FIELD, masks)


def _check_single(count: int, name: str) -> None:
    if count != 1:
        message = f"found {count} pictures in {name}, expected 1; send a request for each"
        raise problem_error(400, "unsupported", message, name)


def _image_source(reference: Reference, name: str, files: Sequence[Path]) -> ImageSource:
    """The file that a reference held the bytes of, or the address that it names."""
    if reference.file_id is not None and reference.image_url is not None:
        raise problem_error(400, "invalid_value", f"{name} has image_url and file_id, expected image_url alone", name)
    if reference.file_id is not None:
        message = f"{name}: there is no file {short_repr(reference.file_id)}, files are not stored here; send image_url"
        raise problem_error(400, "image_file_not_found", message, name)
    if reference.image_url is None:
        raise problem_error(400, "missing_parameter", f"{name} has no image_url; give a data: URL", name)
    return files[0] if is_data_url(reference.image_url) else reference.image_url
