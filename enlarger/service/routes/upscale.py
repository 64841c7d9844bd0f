"""`POST /v1/images/upscale`, in the documented dialect and in LocalAI's."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from enlarger.service.core import service_of
from enlarger.service.jobs import Ask
from enlarger.service.routes import examples, openapi
from enlarger.service.routes.answers import Images
from enlarger.service.routes.asks import Wish, ask_of, upscale_wish
from enlarger.service.routes.fields import UpscaleForm
from enlarger.service.routes.incoming import body_of, incoming
from enlarger.service.routes.order import order_of
from enlarger.service.routes.serving import answered, earlier
from enlarger.service.routes.sources import one_picture
from enlarger.service.routes.workspace import Source, Workspace, fit_of, notes_of, workspace

router = APIRouter(tags=["images"])
FILES = {"image": "the picture to enlarge: PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF"}


@router.post(
    "/v1/images/upscale",
    summary="Enlarge a picture",
    response_model=None,
    responses=openapi.making(Images, examples.IMAGES),
    openapi_extra=openapi.body(openapi.form(UpscaleForm, examples.UPSCALE, FILES, ("image",))),
)
async def upscale(request: Request) -> Response:
    """The result is exactly `scale` times as wide and high as the input, after `size`. Two dialects meet here: with a
    `prompt` and no `scale` the pictures are in the answer, and steps and guidance are 25 and 7.5 where a model takes
    them; else addresses are answered, as LocalAI does, and defaults are the model's. `response_format` decides both."""
    service, order = service_of(request), order_of(request)
    bounds = service.settings.bounds
    async with incoming(request, bounds, forms=True, objects=False) as found:
        body, source = body_of(UpscaleForm, found), one_picture(found)
        model = service.queue.model_for("upscale", body.model or None)
        wish = upscale_wish(body, bounds, model.kind)
        job = await earlier(service, order, (wish,), body.seed is not None)
        if job is None:
            async with workspace(service) as room:
                ask = await upscale_ask(room, wish, model.name, source)
            job = await room.submit(ask, order)
    return await answered(request, job, order, wish.url)


async def upscale_ask(room: Workspace, wish: Wish, model: str, source: Source) -> Ask:
    """The ask, with the picture decoded."""
    bounds, fit = room.service.settings.bounds, fit_of(wish)
    most = min(bounds.pixels, bounds.upscale_pixels) if fit is None else bounds.pixels
    picture = await room.picture(source, most, fit)
    return ask_of(wish, model, bounds, (picture.width, picture.height), notes_of(fit, picture))
