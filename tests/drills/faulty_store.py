"""An S3 server on this machine that fails now and then: `python -m tests.drills.faulty_store PORT EVERY`.

moto's server, with every so manieth request answered 503 SlowDown. moto is installed by hand, for this drill alone.
"""

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import count
from typing import Any

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def faulty(app: Wsgi, every: int) -> Wsgi:
    """The application, with failures."""
    numbers = count(1)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if next(numbers) % every == 0:
            start_response(
                "503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))]
            )
            return [SLOW_DOWN]
        return app(environ, start_response)

    return answer


def main(port: int, every: int) -> None:
    """Serve until killed."""
    server: Any = import_module("moto.server")
    app: Wsgi = server.DomainDispatcherApplication(server.create_backend_app)
    import_module("werkzeug.serving").run_simple("127.0.0.1", port, faulty(app, every), threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
