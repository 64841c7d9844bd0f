"""The routes: what each address of the service does."""

from fastapi import APIRouter, Security

from enlarger.service.routes import jobs, openai, openapi, page, status, upscale


def routers() -> list[APIRouter]:
    """All routes, for the application."""
    guarded = APIRouter(dependencies=[Security(openapi.BEARER), Security(openapi.HEADER)])
    for router in (upscale.router, openai.router, jobs.router, status.router):
        guarded.include_router(router)
    return [guarded, jobs.shared, status.public, page.router]
