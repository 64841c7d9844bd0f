"""The routes: what each address of the service does."""

from fastapi import APIRouter, FastAPI, Security

from enlarger.service.routes import jobs, openai, openapi, operator, page, status, upscale
from enlarger.service.routes.a1111 import listing, making, session
from enlarger.service.routes.exception_handlers import install_exception_handlers


def install_routes(app: FastAPI, with_a1111: bool = False) -> None:
    """Give an application all routes, the one form of errors, and the OpenAPI document."""
    if with_a1111:
        app.state.a1111 = session.Sessions()
        for router in (making.router, listing.router):
            app.include_router(router)
    authenticated = APIRouter(dependencies=[Security(openapi.BEARER_AUTH), Security(openapi.API_KEY_AUTH)])
    for router in (upscale.router, openai.router, jobs.router, status.router, operator.router):
        authenticated.include_router(router)
    for router in (authenticated, jobs.public_router, status.public_router, page.router):
        app.include_router(router)
    install_exception_handlers(app)
    openapi.install_openapi(app)
