"""The application: routes behind the guard, and the parts that start and stop with it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from enlarger import __version__
from enlarger.service.core import Service
from enlarger.service.edge.metrics import Metrics
from enlarger.service.pictures.decode import Decoder
from enlarger.service.pictures.fetch import Fetcher
from enlarger.service.queue.queue import Queue
from enlarger.service.routes import replies, routers
from enlarger.service.settings import Settings

ABOUT = "Enlarge, repair and refine pictures with latent diffusion. OpenAI's images API, and `/v1/images/upscale`."


def make_app(settings: Settings) -> FastAPI:
    """The service of some settings, not yet running: its processes start with the application's lifespan."""
    metrics = Metrics()
    service = Service(settings, Queue(settings, metrics), Decoder(settings), Fetcher(settings), metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        await service.queue.start()
        try:
            await service.decoder.start()
            yield
        finally:
            await service.queue.drain()
            await service.decoder.stop()

    app = FastAPI(
        title="enlarger",
        version=__version__,
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,  # they load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=settings.bounds.body,
    )
    app.state.service = service
    for router in routers():
        app.include_router(router)
    replies.install(app)
    return app
