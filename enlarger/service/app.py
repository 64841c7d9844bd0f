"""The application: routes, and the parts that start and stop with it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from enlarger import __version__
from enlarger.service.dependencies import Service
from enlarger.service.jobs.manager import JobManager
from enlarger.service.metrics import Metrics
from enlarger.service.routes import install_routes
from enlarger.service.settings import Settings
from enlarger.service.uploads.body_spool import BodySpool
from enlarger.service.uploads.decoder_pool import DecoderPool
from enlarger.service.uploads.fetch import UrlFetcher
from enlarger.service.workers.supervisor import WorkerPlan

DESCRIPTION = (
    "Enlarge, repair and refine pictures with latent diffusion. OpenAI's images API, and `/v1/images/upscale`."
)


def create_app(settings: Settings, workers: WorkerPlan | None = None) -> FastAPI:
    """The service of some settings, not yet running: its processes start with the application's lifespan.

    Without a plan there is a worker for each of the settings' devices.
    """
    metrics = Metrics()
    jobs, bodies, decoder = JobManager(settings, metrics, workers), BodySpool(settings), DecoderPool(settings)
    service = Service(settings, jobs, bodies, decoder, UrlFetcher(settings), metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        await service.jobs.start()
        try:
            await service.decoder.start()
            yield
        finally:
            await service.jobs.drain()
            await service.decoder.stop()

    app = FastAPI(
        title="enlarger",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,  # see `install_openapi`
        docs_url=None,  # they load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=settings.bounds.body,
    )
    app.state.service = service
    install_routes(app, settings.a1111)
    return app
