"""The routes: what each address of the service does."""

from fastapi import APIRouter, Security

from enlarger.service.routes import jobs, openai, openapi, page, status, upscale


def routers() -> list[APIRouter]:
    """All routes, for the application."""
    authenticated = APIRouter(dependencies=[Security(openapi.BEARER_AUTH), Security(openapi.API_KEY_AUTH)])
    for router in (upscale.router, openai.router, jobs.router, status.router):
        authenticated.include_router(router)
    return [authenticated, jobs.public_router, status.public_router, page.router]
