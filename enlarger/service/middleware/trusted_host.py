"""Which names in Host are ours: a foreign page can make a name of its own resolve to 127.0.0.1."""

import re
from collections.abc import Callable

from enlarger.errors import InputError
from enlarger.service.middleware.asgi import RequestHead
from enlarger.service.problems import problem_error
from enlarger.service.settings import LOOPBACK, Settings

WILDCARD_HOSTS = ("0.0.0.0", "::")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
HeadCheck = Callable[[RequestHead], None]


def make_host_check(settings: Settings) -> HeadCheck:
    """Refuses with 403 what comes to a name that is not ours: rebound names above all."""
    any_host = "*" in settings.hosts
    if any_host and not settings.keys:
        raise InputError("hosts has '*', and there is no key; name the hosts, or make a key with `enlarger key`")
    allowed_hosts = {bracket_ipv6(name.lower()) for name in (*LOOPBACK, settings.host, *settings.hosts)}

    def check(head: RequestHead) -> None:
        name, port = parse_host(head)
        own_address = bracket_ipv6(head.server_host.removeprefix("::ffff:"))  # IPv4 as a socket of both kinds says it
        is_own_address = settings.host in WILDCARD_HOSTS and name == own_address
        if not (any_host or is_own_address or name in allowed_hosts or f"{name}:{port}" in allowed_hosts):
            raise problem_error(
                403, "host_not_allowed", f"{name!r} is no name of this service; add it to hosts to allow it"
            )

    return check


def parse_host(head: RequestHead) -> tuple[str, str]:
    """The name and the port in Host; ProblemError unless there is exactly one of it, in good form."""
    values = head.getlist("host")
    if len(values) != 1:
        raise problem_error(403, "host_not_allowed", f"expected one Host header, found {len(values)}")
    match = _HOST.fullmatch(values[0].strip().lower())
    if match is None:
        raise problem_error(403, "host_not_allowed", "the Host header is no name with an optional port")
    return match[1], match[2] or ""


def bracket_ipv6(name: str) -> str:
    """An address as it stands in a URL."""
    is_bare_ipv6 = name.count(":") > 1 and not name.startswith("[")
    return f"[{name}]" if is_bare_ipv6 else name
