"""A batch on Ray Data: a lazy listing, and a pool of actors that do it; what became of each job comes back as text."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from typing import Any, Protocol

from enlarger.cluster.arrow import column_table
from enlarger.cluster.connect import ClusterOptions, enter_folder, import_ray
from enlarger.strict_json import Json

SMALL_BATCH, BATCH, NUM_SMALL = 4, 16, 128  # jobs in a row: few at first, so that short runs are shared out evenly
MAX_DEATHS = 5  # of workers at one job, before it is given up

Done = Mapping[str, str]  # what earlier runs have done, and of which version
ListJobs = Callable[[Done], Iterable[Json]]  # the same jobs in the same order each time: what is lost is listed again


class JobWorker(Protocol):
    """What an actor of the pool does; it is made once in each, and reads the model there."""

    def run(self, jobs: Sequence[Json], may_start: Callable[[str], bool]) -> list[Json]:
        """What became of each job. `may_start` says whether its name was not given up."""
        ...


class Attempts:
    """Counts how often something was begun and not ended, because its worker died."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}

    def begin(self, name: str, ended: Sequence[str] = ()) -> int:
        """How often this was begun before, and not ended; all is well with those that have `ended`."""
        self.end(ended)
        self.begun[name] = self.begun.get(name, 0) + 1
        return self.begun[name] - 1

    def end(self, names: Sequence[str]) -> None:
        """All is well with these."""
        for name in names:
            self.begun.pop(name, None)


class BatchActor:
    """The face of a `JobWorker` to Ray Data: a batch is one row, JSON in a column of text."""

    def __init__(self, make: Callable[[], JobWorker], attempts: Any, folder: str) -> None:
        enter_folder(folder)
        self.ray, self.attempts, self.worker = import_ray(), attempts, make()

    def __call__(self, batch: Any) -> Any:
        done = [json.dumps(self._run(json.loads(text))) for text in batch["jobs"].to_pylist()]
        return column_table("outcomes", done)

    def _run(self, jobs: list[Json]) -> list[Json]:
        names = [str(job["key"]) for job in jobs]
        batch_name = f"batch {names[0]}"
        died, current = self._begin(batch_name, ()) > 0, list[str]()

        def may_start(name: str) -> bool:
            """Only a batch that killed its worker is watched job by job, which costs a message for each."""
            ended, current[:] = tuple(current), [name]
            return not died or self._begin(name, ended) < MAX_DEATHS

        outcomes = self.worker.run(jobs, may_start)
        self.attempts.end.remote([batch_name, *names])
        return outcomes

    def _begin(self, name: str, ended: Sequence[str]) -> int:
        return int(self.ray.get(self.attempts.begin.remote(name, ended)))


def run_batch(
    ray: Any, jobs: tuple[ListJobs, Done], make: Callable[[], JobWorker], stage: str, options: ClusterOptions
) -> Iterator[Json]:
    """Run the jobs on the cluster; what became of them, as they end. `stage` is their name in Ray's dashboard."""
    data: Any = import_module("ray.data")
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    _set_up_context(data.DataContext.get_current())
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    attempts = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Attempts).remote()
    list_jobs, done = jobs
    done_reference, folder = ray.put(dict(done)), os.getcwd()

    def list_all() -> Iterable[Json]:
        enter_folder(folder)
        return list_jobs(import_ray().get(done_reference))

    batches: Any = data.read_datasource(_source(list_all), override_num_blocks=1, num_cpus=0).map_batches(
        type(stage, (BatchActor,), {}),
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=options.least, max_size=options.most, max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(make, attempts, folder),
        num_cpus=1,
        num_gpus=options.gpus_per_worker or None,
    )
    for row in batches.iter_rows():
        yield from json.loads(row["outcomes"])


def _set_up_context(context: Any) -> None:
    """Every row is a block of its own, which streams at once; nothing is drawn or logged."""
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.issue_detectors_config.detectors = []
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[:2] == ["ray", "data"]]:
        logging.getLogger(name).setLevel(logging.ERROR)


def _source(list_jobs: Callable[[], Iterable[Json]]) -> Any:
    """Ray Data's name for one task that lists, while others work on what it has listed."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[Any]:
        for batch in in_batches(list_jobs()):
            yield column_table("jobs", [json.dumps(batch)])

    class Listing(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    return Listing()


def in_batches(jobs: Iterable[Json]) -> Iterator[list[Json]]:
    """The jobs in lists, small ones first."""
    remaining, number = iter(jobs), 0
    while batch := list(islice(remaining, SMALL_BATCH if number < NUM_SMALL else BATCH)):
        number += 1
        yield batch
