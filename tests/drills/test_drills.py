"""The drills in short form. Bars on time get slack and a second try: machines of continuous integration are shared."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.drills.catalogue import DRILLS, Alone, Drill, Options
from tests.drills.figures import Figure, exactly, millis, quantile, table
from tests.drills.storage import NoDisk
from tests.support.service import Served, running

SLACK = 6.0


def settings_of(drill: Drill | Alone) -> str:
    return "" if isinstance(drill, Alone) else json.dumps(drill.options(short=True), sort_keys=True)


NAMES = sorted(DRILLS, key=lambda name: settings_of(DRILLS[name]))  # so that neighbours share a service


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Options], Served]]:
    """Gives a service of some settings: the one that runs, if it has them."""
    held: dict[str, Served] = {}
    with ExitStack() as stack:

        def given(settings: Options) -> Served:
            key = json.dumps(settings, sort_keys=True)
            if key not in held:
                stack.close()
                held.clear()
                held[key] = stack.enter_context(running(**settings))
            return held[key]

        yield given


@pytest.mark.timeout(600)  # some make hundreds of calls
@pytest.mark.parametrize("name", NAMES)
def test_the_service_bears(name: str, serve: Callable[[Options], Served]):
    try:
        missed = missed_figures(DRILLS[name], serve)
        if missed and all(each.loose for each in missed):  # the machine may have been busy: what is wrong comes again
            missed = missed_figures(DRILLS[name], serve)
    except NoDisk as error:
        pytest.skip(str(error))
    assert not missed, "\n".join(map(str, missed))


def missed_figures(drill: Drill | Alone, serve: Callable[[Options], Served]) -> list[Figure]:
    """Those that do not keep their bar."""
    alone = isinstance(drill, Alone)
    figures = drill.run(drill.short) if alone else drill.run(serve(drill.options(True)), drill.short)
    return [each for each in figures if not each.good(SLACK)]


def test_a_figure_keeps_its_bar():
    assert exactly("jobs", 3, 3).good() and not exactly("jobs", 2, 3).good()
    assert not millis("answer", 0.2, most=0.1).good() and millis("answer", 0.2, most=0.1).good(slack=3)
    assert Figure("anything", 5).good() and not Figure("bytes", 5, most=4).good(slack=3)


def test_a_quantile_is_a_value_that_was_seen():
    values = [float(value) for value in range(100, 0, -1)]
    assert [quantile(values, part) for part in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]


def test_a_table_says_what_was_missed():
    lines = table([exactly("lost", 1, 0), Figure("requests", 1200)]).splitlines()
    assert lines[2:] == ["| lost | 0 | 1 | **missed** |", "| requests |  | 1,200 |  |"]
