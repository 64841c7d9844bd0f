"""The server process: a socket, uvicorn on it, and an end in good order."""

import asyncio
import errno
import os
import resource
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from enlarger.errors import InputError
from enlarger.service.logging_config import configure_logging, log_event
from enlarger.service.metrics import Metrics
from enlarger.service.middleware.stack import MAX_HEADER_BYTES, middleware_stack
from enlarger.service.middleware.timeout_protocol import WRITE_SECONDS, make_timeout_protocol
from enlarger.service.middleware.trusted_host import bracket_ipv6
from enlarger.service.settings import Settings

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
KEEP_ALIVE_SECONDS = 5  # of a connection between two requests
SHUTDOWN_SECONDS = 5  # for the last answers to leave, after all jobs have ended
MAX_OPEN_FILES = 65536
WILDCARD_TO_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def serve(settings: Settings, app: FastAPI, on_ready: Callable[[str], None]) -> int:
    """Serve until a signal; the exit status. `on_ready` is given the address as a URL once requests are answered.

    At the first SIGTERM or SIGINT new work is refused while running jobs end and everything else is still answered; at
    the second the process ends at once. Raises InputError where the address or the data folder cannot be used.
    """
    configure_logging(settings)
    _raise_open_file_limit()
    with bind_socket(settings.host, settings.port) as listener:
        asyncio.run(_serve(settings, app, listener, on_ready))
    return 0


async def _serve(settings: Settings, app: FastAPI, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    """The application starts and stops here and not in uvicorn, which would make a traceback of an InputError."""
    service = app.state.service
    asgi_app = middleware_stack(app, settings, service.metrics, service.jobs.reserve, service.jobs.is_known)
    stop = _install_signal_handlers()
    async with app.router.lifespan_context(app), run_uvicorn(asgi_app, settings, listener, service.metrics):
        url = server_url(settings.host, listener)
        log_event("serving", url=url)
        on_ready(url)
        await stop.wait()
        await _drain(service.jobs.drain)
    log_event("stopped")


async def _drain(drain: Callable[[], Awaitable[None]]) -> None:
    log_event("draining")
    await drain()
    log_event("drained")


def _install_signal_handlers() -> asyncio.Event:
    """An event that the first signal sets; a second one ends the process, and the workers see their input close."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for stop_signal in STOP_SIGNALS:
        loop.add_signal_handler(stop_signal, on_signal, int(stop_signal))
    return stop


@asynccontextmanager
async def run_uvicorn(
    app: ASGIApp,
    settings: Settings,
    listener: socket.socket,
    metrics: Metrics,
    write_seconds: float = WRITE_SECONDS,
) -> AsyncGenerator[None]:
    """Answer requests on a socket; at the end, no new ones, and a few seconds for the answers under way."""
    bounds = settings.bounds
    config = uvicorn.Config(
        app,
        http=make_timeout_protocol(bounds.header_seconds, write_seconds, bounds.connections, metrics),
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        forwarded_allow_ips=["127.0.0.1", "::1"],  # a proxy on this machine says whether it was https
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    main_loop = asyncio.create_task(server.main_loop())
    try:
        yield
    finally:
        server.should_exit = True
        await main_loop
        await server.shutdown([listener])


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises InputError, in one line, if there is none."""
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{host!r} is no address of this machine; expected one such as 127.0.0.1") from error
    family, kind, protocol, _, address = min(candidates, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InputError(_bind_error_message(host, port, error)) from error
    return listener


def _bind_error_message(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; end what listens there, or give another port (0 picks a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} is not for ordinary users; give one from 1024 on, or 0 for a free one"
    return f"cannot listen on {host}: {error.strerror}; expected an address of this machine such as 127.0.0.1"


def server_url(host: str, listener: socket.socket) -> str:
    """Where a socket is reached from this machine."""
    return f"http://{bracket_ipv6(WILDCARD_TO_LOOPBACK.get(host, host))}:{listener.getsockname()[1]}"


def _raise_open_file_limit() -> None:
    """Every connection is an open file; ask for as many as the system allows without more rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
