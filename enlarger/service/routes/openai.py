"""OpenAI's images: generations, edits and variations; and LocalAI's inpainting."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from enlarger.jsonfile import shown
from enlarger.service.core import Service, service_of
from enlarger.service.faults import refuse
from enlarger.service.jobs import Ask, Job
from enlarger.service.routes import examples, openapi, replies
from enlarger.service.routes.answers import Images
from enlarger.service.routes.asks import Wish, ask_of, edit_wish, generation_wish, variation_wish
from enlarger.service.routes.fields import Edit, EditJson, Generation, Inpainting, OpenAI, Variation
from enlarger.service.routes.incoming import body_of, incoming
from enlarger.service.routes.order import Order, order_of
from enlarger.service.routes.serving import answered, earlier
from enlarger.service.routes.sources import one_picture, pictures_of, referred
from enlarger.service.routes.stream import Kind, Watched, streamed
from enlarger.service.routes.workspace import Source, Workspace, fit_of, notes_of, workspace

router = APIRouter(tags=["images"])
PICTURE = {"image": "the picture: PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF; `image[]` is understood too"}
MASKED = PICTURE | {
    "mask": "what is repainted, see `mask_mode`; without it, what is transparent of the picture, or all"
}
NEEDED = PICTURE | {"mask": "what is repainted: white"}
Pictures = tuple[Source, Source | None]


@router.post(
    "/v1/images/generations",
    summary="Make pictures from text",
    response_model=None,
    responses=openapi.making(Images, examples.IMAGES, examples.GENERATION_STREAM, "image_generation"),
    openapi_extra=openapi.body(openapi.json_body(Generation, examples.GENERATION)),
)
async def generations(request: Request) -> Response:
    """Pictures of exactly `size`; with `upscale` that many times larger. With `stream` the answer is a stream of events
    `image_generation.partial_image` and `image_generation.completed`."""
    service = service_of(request)
    bounds = service.settings.bounds
    async with incoming(request, bounds, forms=False, objects=True) as found:
        body = body_of(Generation, found)
        order = order_of(request, body.stream is True)
        _check(body)
        model = service.queue.model_for("generate", body.model or None)
        wish = generation_wish(body, bounds, _refiner(service, model.name) if body.refiner is True else None)
        job = await earlier(service, order, (wish,), body.seed is not None)
        if job is None:
            async with workspace(service) as room:
                ask = ask_of(wish, model.name, bounds)
            job = await room.submit(ask, order)
    return await _answer(request, job, order, wish.url)


@router.post(
    "/v1/images/edits",
    summary="Repaint a part of a picture, or all of it",
    response_model=None,
    responses=openapi.making(Images, examples.IMAGES, examples.EDIT_STREAM, "image_edit"),
    openapi_extra=openapi.body(
        openapi.form(Edit, examples.EDIT, MASKED, ("image",)), openapi.json_body(EditJson, examples.EDIT_JSON)
    ),
)
async def edits(request: Request) -> Response:
    """What the mask covers is repainted, and not one pixel else. Without a mask it is what is transparent of the
    picture; without that the whole picture is remade, `strength` (here 0.75 if absent) away from what it was."""
    service = service_of(request)
    async with incoming(request, service.settings.bounds, forms=True, objects=True) as found:
        if found.form:
            body, pictures = body_of(Edit, found), pictures_of(found)
        else:
            body = body_of(EditJson, found)
            pictures = referred(body)
        order = order_of(request, body.stream is True)
        _check(body)
        job, wish = await _edited(service, order, body, pictures)
    return await _answer(request, job, order, wish.url, "image_edit")


@router.post(
    "/v1/images/inpainting",
    summary="Repaint a part of a picture, as LocalAI does",
    response_model=None,
    responses=openapi.making(Images, examples.IMAGES),
    openapi_extra=openapi.body(openapi.form(Inpainting, examples.EDIT, NEEDED, ("image", "mask"))),
)
async def inpainting(request: Request) -> Response:
    """As edits with a mask; addresses are answered if `response_format` does not say otherwise."""
    service, order = service_of(request), order_of(request)
    async with incoming(request, service.settings.bounds, forms=True, objects=False) as found:
        body, pictures = body_of(Inpainting, found), pictures_of(found)
        if pictures[1] is None:
            raise refuse(400, "missing_parameter", "mask is missing; send it as a file, white is repainted", "mask")
        job, wish = await _edited(service, order, body, pictures)
    return await answered(request, job, order, wish.url)


@router.post(
    "/v1/images/variations",
    summary="Make variations of a picture",
    response_model=None,
    responses=openapi.making(Images, examples.IMAGES),
    openapi_extra=openapi.body(openapi.form(Variation, examples.VARIATION, PICTURE, ("image",))),
)
async def variations(request: Request) -> Response:
    """The picture is remade without a prompt, `strength` (0.6 if absent) away from what it was."""
    service, order = service_of(request), order_of(request)
    bounds = service.settings.bounds
    async with incoming(request, bounds, forms=True, objects=False) as found:
        body, source = body_of(Variation, found), one_picture(found)
        model = service.queue.model_for("refine", body.model or None)
        wish = variation_wish(body, bounds)
        job = await earlier(service, order, (wish,), body.seed is not None)
        if job is None:
            async with workspace(service) as room:
                picture = await room.picture(source, bounds.pixels, fit_of(wish))
                size, notes = (picture.width, picture.height), notes_of(fit_of(wish), picture)
                ask = ask_of(wish, model.name, bounds, size, notes)
            job = await room.submit(ask, order)
    return await answered(request, job, order, wish.url)


async def _edited(service: Service, order: Order, body: Edit | Inpainting, pictures: Pictures) -> tuple[Job, Wish]:
    """The job of an edit. Whether it has a mask can depend on the picture, which is decoded first."""
    bounds = service.settings.bounds
    masked, plain = (edit_wish(body, bounds, mask) for mask in (True, False))
    possible = (masked,) if pictures[1] is not None else (masked, plain)
    job = await earlier(service, order, possible, body.seed is not None)
    if job is None:
        async with workspace(service) as room:
            ask = await _edit_ask(room, body, pictures, masked, plain)
        job = await room.submit(ask, order)
    return job, masked


async def _edit_ask(room: Workspace, body: Edit | Inpainting, pictures: Pictures, masked: Wish, plain: Wish) -> Ask:
    """The ask, with picture and mask decoded."""
    image, mask = pictures
    if mask is not None and body.mask_mode == "none":
        raise refuse(400, "invalid_value", "mask_mode is none, but there is a mask; leave one of them out", "mask_mode")
    queue, bounds, fit = room.service.queue, room.service.settings.bounds, fit_of(masked)
    if mask is not None:
        queue.model_for("inpaint", body.model or None)  # before any work
    picture = await room.picture(image, bounds.pixels, fit)
    notes, wish = notes_of(fit, picture), masked
    if mask is not None:
        resize = body.mask_resize is True
        notes += (await room.mask(mask, picture, body.mask_mode or "auto", resize, fit)).notes
    elif picture.transparent and body.mask_mode != "none":
        notes += (await room.mask_of_picture(fit)).notes
    else:
        wish = plain
    model = queue.model_for(wish.task, body.model or None)
    return ask_of(wish, model.name, bounds, (picture.width, picture.height), notes)


async def _answer(request: Request, job: Job, order: Order, url: bool, kind: Kind = "image_generation") -> Response:
    if not order.stream:
        return await answered(request, job, order, url)
    watched = Watched(service_of(request), job, kind, replies.base_of(request), url)
    return streamed(watched.texts())


def _check(body: OpenAI) -> None:
    """Raises Refused for what no model here can do."""
    if body.background == "transparent":
        message = "background is transparent, but the models here paint every pixel; expected opaque or auto"
        raise refuse(400, "unsupported", message, "background")
    if body.background not in (None, "opaque", "auto"):
        message = f"background is {shown(body.background)}, expected opaque or auto"
        raise refuse(400, "invalid_value", message, "background")
    for name in ("upscale", "refiner"):
        if (body.model_extra or {}).get(name) not in (None, False, "", "false"):
            message = f"{name} is for generations alone; send the result of an edit to /v1/images/upscale"
            raise refuse(400, "unsupported", message, name)


def _refiner(service: Service, model: str) -> str:
    """The model that finishes what another begins."""
    name = next(one.refiner for one in service.settings.known_models if one.name == model)
    if name is None:
        message = f"refiner is true, but the settings give {model} no refiner; set `refiner` of the model, or leave it"
        raise refuse(400, "unsupported", message, "refiner")
    return name
