"""What the service counts and times, for Prometheus. Labels take a bounded set of values, and no text of a client."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from enlarger import __version__

STATES = ("queued", "running", "succeeded", "failed", "canceled")
OTHER = "other"
DISTINCT = 100  # values of one label
QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All of them, in a registry of their own, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seen: dict[str, set[str]] = {}
        ProcessCollector(registry=self.registry)  # the server's memory, time and open files
        self._of_requests()
        self._of_work()
        self._of_models()

    def _of_requests(self) -> None:
        self._requests = self._counter("requests", "answers", "route", "status")
        self._failures = self._counter("request_failures", "answers that are errors", "code")
        self._rejected = self._counter("requests_rejected", "requests refused to protect the service", "reason")
        self._seconds = self._histogram("request_duration_seconds", "from head to end of answer", LONG, "route")

    def _of_work(self) -> None:
        self._waits = self._histogram("queue_wait_seconds", "from asking to starting", LONG)
        self._runs = self._histogram("inference_duration_seconds", "parts of jobs", LONG, "task", "model", "stage")
        self._steps = self._histogram("step_duration_seconds", "steps of the solver", QUICK, "model")
        self._queue = self._gauge("queue_size", "jobs that wait")
        self._running = self._gauge("requests_running", "jobs that run")
        self._images = self._counter("images", "pictures made", "task", "model")
        self._pixels = self._counter("output_pixels", "pixels of pictures made")
        self._batches = self._histogram("batch_size", "jobs that ran together", (1, 2, 3, 4, 6, 8, 12, 16))
        self._cancelled = self._counter("cancelled", "jobs that were stopped", "cause")
        self._jobs = self._gauge("jobs", "jobs that are kept", "state")
        for state in STATES:
            self._jobs.labels(state).set(0)

    def _of_models(self) -> None:
        self._oom = self._counter("oom", "times that memory was short, and what helped", "fallback")
        self._nonfinite = self._counter("nonfinite", "times that NaN or infinity came out", "stage")
        self._loaded = self._gauge("model_loaded", "1 while the model's weights are in memory", "model")
        self._loads = self._histogram("model_load_seconds", "reading of a model's weights", LONG)
        self._restarts = self._counter("worker_restarts", "workers started again after a death")
        self._memory = self._gauge("device_memory_bytes", "memory of the devices in use", "kind")
        self._downloads = self._counter("download_bytes", "bytes fetched from URLs in requests")
        self._gauge("build_info", "1; the version is in the label", "version").labels(__version__).set(1)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"enlarger_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"enlarger_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"enlarger_{name}", help, labels, registry=self.registry, buckets=buckets)

    def _bounded(self, label: str, value: str) -> str:
        """A label's value; what comes after too many different ones is "other"."""
        seen = self._seen.setdefault(label, set())
        if value not in seen and len(seen) >= DISTINCT:
            return OTHER
        seen.add(value)
        return value

    def request(self, route: str, status: int, seconds: float, code: str | None = None) -> None:
        """An answer is over. `route` is the template of a path, `code` that of an error body."""
        route = self._bounded("route", route)
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if status >= 400:
            self._failures.labels(OTHER if code is None else self._bounded("code", code)).inc()

    def rejected(self, reason: str) -> None:
        """A request was refused to protect the service. The guard says so of every answer, whoever gave it."""
        self._rejected.labels(self._bounded("reason", reason)).inc()

    def waited(self, seconds: float) -> None:
        """A job has left the queue."""
        self._waits.observe(seconds)

    def ran(self, task: str, model: str, stage: str, seconds: float) -> None:
        """A part of a job is done."""
        self._runs.labels(
            self._bounded("task", task), self._bounded("model", model), self._bounded("stage", stage)
        ).observe(seconds)

    def step(self, model: str, seconds: float) -> None:
        """A step of a solver is done."""
        self._steps.labels(self._bounded("model", model)).observe(seconds)

    def images(self, task: str, model: str, count: int, pixels: int) -> None:
        """Pictures were made; `pixels` is the sum of all of them."""
        self._images.labels(self._bounded("task", task), self._bounded("model", model)).inc(count)
        self._pixels.inc(pixels)

    def batch(self, size: int) -> None:
        """So many jobs went to a worker together."""
        self._batches.observe(size)

    def cancelled(self, cause: str) -> None:
        """A job was stopped, by its client or because that went away."""
        self._cancelled.labels(self._bounded("cause", cause)).inc()

    def oom(self, fallback: str) -> None:
        """Memory was short, and a worker went on in another way."""
        self._oom.labels(self._bounded("fallback", fallback)).inc()

    def nonfinite(self, stage: str) -> None:
        """NaN or infinity came out of a network."""
        self._nonfinite.labels(self._bounded("stage", stage)).inc()

    def model_loaded(self, name: str, loaded: bool) -> None:
        """A model's weights came into memory, or left it."""
        self._loaded.labels(self._bounded("model", name)).set(int(loaded))

    def model_load(self, seconds: float) -> None:
        """A model's weights were read."""
        self._loads.observe(seconds)

    def worker_restart(self) -> None:
        """A worker was started again."""
        self._restarts.inc()

    def memory(self, kind: str, bytes: float) -> None:
        """What the devices hold now."""
        self._memory.labels(self._bounded("kind", kind)).set(bytes)

    def jobs(self, counts: Mapping[str, int]) -> None:
        """How many jobs there are in each state; one that is not named has none."""
        for state in STATES:
            self._jobs.labels(state).set(counts.get(state, 0))

    def queue(self, size: int, running: int) -> None:
        """How many jobs wait and run now."""
        self._queue.set(size)
        self._running.set(running)

    def downloaded(self, bytes: int) -> None:
        """Bytes came from a URL that a request named."""
        self._downloads.inc(bytes)

    def render(self) -> bytes:
        """The text that `/metrics` answers with."""
        return generate_latest(self.registry)
