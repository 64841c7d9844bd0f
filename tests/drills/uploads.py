"""Hostile uploads over HTTP: each is refused within moments, and the service goes on."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.drills import jobs, wire
from tests.drills.figures import Figure, millis, none, quantile, share
from tests.drills.odd import Odd, odd_uploads, truncations
from tests.drills.processes import pids
from tests.support.service import Served


def uploads(served: Served, count: int) -> list[Figure]:
    """`count` files in all: the odd ones first, then truncations."""
    with TemporaryDirectory() as place:
        files = odd_uploads(Path(place))
    files = [*files[:count], *truncations(max(0, count - len(files)))]
    workers = pids(served.process.pid, "worker")
    good_picture(served)
    refused, sound = [each for each in files if not each.sound], [each for each in files if each.sound]
    answers = {each.name: send(served, each) for each in refused}
    taken = {each.name: send(served, each) for each in sound}
    wrong = [f"{name}: {answer.status}" for name, answer in answers.items() if not named(answer)]
    timed = {name: answer.seconds for name, answer in (answers | taken).items() if named(answer)}
    slow, times = max(timed, key=lambda name: timed[name]), list(timed.values())
    return [
        share("refused with 4xx and a code" + said(wrong), len(answers) - len(wrong), len(answers)),
        share(
            "sound but strange: a picture or a refusal",
            sum(a.status == 200 or named(a) for a in taken.values()),
            len(taken),
        ),
        millis("time to a refusal, median", quantile(times, 0.5)),
        millis(f"time to a refusal, longest ({slow})", max(times), most=0.1),
        none("workers lost", len(set(workers) - set(pids(served.process.pid, "worker")))),
        share("good pictures afterwards", sum(good_picture(served) for _ in range(3)), 3),
    ]


def said(wrong: list[str]) -> str:
    return f" (not: {', '.join(wrong[:8])})" if wrong else ""


def named(answer: wire.Answer) -> bool:
    """Whether a refusal is one of ours."""
    return 400 <= answer.status < 500 and answer.code is not None


def send(served: Served, odd: Odd) -> wire.Answer:
    """One request to enlarge a file."""
    host = jobs.host_of(served)
    part = wire.Part("image", odd.content, odd.name, "image/png")
    return wire.send_request(served.url, wire.form(wire.UPSCALE, host, {"model": "bundled"}, [part]))


def good_picture(served: Served) -> bool:
    """Whether the service is alive and enlarges."""
    host = jobs.host_of(served)
    raw = wire.form(wire.UPSCALE, host, {"model": "bundled"}, [wire.Part("image", wire.png(16, 16))])
    return jobs.get(served, "/healthz").status_code == 200 and wire.send_request(served.url, raw).status == 200
