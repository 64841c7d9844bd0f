"""The drills by name: what each is given, in short and in full, and the service that it needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.drills import fuzz, security
from tests.drills.bodies import bodies
from tests.drills.disconnects import disconnects
from tests.drills.figures import Figure
from tests.drills.folders import folders
from tests.drills.harmed_workers import harmed_workers
from tests.drills.hostile_bodies import FULL, HASHES, hostile_bodies
from tests.drills.hostile_costs import hostile_costs
from tests.drills.kills import kills
from tests.drills.load import QUEUE, load
from tests.drills.quota import quota
from tests.drills.slow import slow
from tests.drills.soak import soak
from tests.drills.stops import stops
from tests.drills.storage import storage
from tests.drills.together import together
from tests.drills.uploads import uploads
from tests.support.service import Served, running

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Drill:
    """One drill on a service of some settings, which others may share."""

    run: Callable[[Served, int], list[Figure]]
    short: int
    full: int
    unit: str
    settings: Options = field(default_factory=dict[str, Any])
    short_settings: Options | None = None  # where they differ

    def on_its_own(self, size: int, short: bool) -> list[Figure]:
        with running(**self.options(short)) as served:
            return self.run(served, size)

    def options(self, short: bool) -> Options:
        """The settings of the service."""
        return self.short_settings if short and self.short_settings is not None else self.settings


@dataclass(frozen=True)
class Alone:
    """One drill that starts and ends services of its own."""

    run: Callable[[int], list[Figure]]
    short: int
    full: int
    unit: str

    def on_its_own(self, size: int, short: bool) -> list[Figure]:
        return self.run(size)


ROOM = {"queue": QUEUE}
FUZZED = ROOM | {"bounds": fuzz.SMALL}
HASTY = ROOM | {"bounds": fuzz.SMALL | {"header_seconds": 2, "idle_seconds": 3, "body_seconds": 5}}
SEVERAL = {"fetch": True, "batch": 4}

FAULTS: dict[str, Drill | Alone] = {
    "fuzz": Drill(fuzz.fuzz, 150, 5000, "calls", FUZZED, HASTY),
    "uploads": Drill(uploads, 80, 300, "files", ROOM),
    "bodies": Drill(bodies, 200, 200, "MiB in each body", ROOM, HASTY),
    "hostile-bodies": Drill(hostile_bodies, 40, FULL, "bodies", {"keys": HASHES}),
    "hostile-costs": Alone(hostile_costs, 6, 158, "requests of each kind"),
    "harmed-workers": Alone(harmed_workers, 1, 5, "times each"),
    "load": Drill(load, 36, 200, "requests", ROOM),
    "slow": Drill(slow, 50, 300, "slow senders", ROOM, HASTY),
    "stops": Alone(stops, 2, 50, "stops"),
    "kills": Alone(kills, 4, 200, "kills"),
    "folders": Alone(folders, 1, 20, "kills"),
    "disconnects": Drill(disconnects, 30, 1000, "hang-ups", ROOM),
    "strangers": Drill(security.strangers, 1, 1, "round", ROOM),
    "keys": Drill(security.keys, 1, 1, "round", {"keys": [security.HASHED]}),
    "addresses": Drill(security.addresses, 1, 1, "round", SEVERAL),
    "texts": Drill(security.texts, 30, 32, "payloads", ROOM),
    "logs": Drill(security.logs, 1, 1, "round", ROOM),
    "together": Drill(together, 4, 4, "jobs", SEVERAL),
    "quota": Alone(quota, 4, 5000, "requests"),
    "storage": Alone(storage, 1, 20, "rounds"),
}
SOAK = Drill(soak, 20, 1200, "seconds", ROOM)
DRILLS: dict[str, Drill | Alone] = {**FAULTS, "soak": SOAK}
