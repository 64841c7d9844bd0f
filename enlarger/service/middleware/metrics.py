"""What the service counts and times, for Prometheus. Labels take a bounded set of values, and no text of a client."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from enlarger import __version__

JOB_STATES = ("queued", "running", "succeeded", "failed", "canceled")
OTHER_LABEL = "other"
MAX_LABEL_VALUES = 100  # values of one label
SHORT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LONG_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All of them, in a registry of their own, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._label_values: dict[str, set[str]] = {}
        ProcessCollector(registry=self.registry)  # the server's memory, time and open files
        self._add_request_metrics()
        self._add_job_metrics()
        self._add_model_metrics()

    def _add_request_metrics(self) -> None:
        self._requests = self._counter("requests", "answers", "route", "status")
        self._failures = self._counter("request_failures", "answers that are errors", "code")
        self._rejected = self._counter("requests_rejected", "requests refused to protect the service", "reason")
        self._request_seconds = self._histogram(
            "request_duration_seconds", "from head to end of answer", LONG_BUCKETS, "route"
        )

    def _add_job_metrics(self) -> None:
        self._queue_wait_seconds = self._histogram("queue_wait_seconds", "from asking to starting", LONG_BUCKETS)
        self._inference_seconds = self._histogram(
            "inference_duration_seconds", "parts of jobs", LONG_BUCKETS, "task", "model", "stage"
        )
        self._step_seconds = self._histogram("step_duration_seconds", "steps of the solver", SHORT_BUCKETS, "model")
        self._queue_size = self._gauge("queue_size", "jobs that wait")
        self._running = self._gauge("requests_running", "jobs that run")
        self._images = self._counter("images", "pictures made", "task", "model")
        self._pixels = self._counter("output_pixels", "pixels of pictures made")
        self._batch_sizes = self._histogram("batch_size", "jobs that ran together", (1, 2, 3, 4, 6, 8, 12, 16))
        self._cancelled = self._counter("cancelled", "jobs that were stopped", "cause")
        self._jobs = self._gauge("jobs", "jobs that are kept", "state")
        for state in JOB_STATES:
            self._jobs.labels(state).set(0)

    def _add_model_metrics(self) -> None:
        self._oom = self._counter("oom", "times that memory was short, and what helped", "fallback")
        self._nonfinite = self._counter("nonfinite", "times that NaN or infinity came out", "stage")
        self._loaded = self._gauge("model_loaded", "1 while the model's weights are in memory", "model")
        self._load_seconds = self._histogram("model_load_seconds", "reading of a model's weights", LONG_BUCKETS)
        self._restarts = self._counter("worker_restarts", "workers started again after a death")
        self._memory_bytes = self._gauge("device_memory_bytes", "memory of the devices in use", "kind")
        self._download_bytes = self._counter("download_bytes", "bytes fetched from URLs in requests")
        self._gauge("build_info", "1; the version is in the label", "version").labels(__version__).set(1)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"enlarger_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"enlarger_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"enlarger_{name}", help, labels, registry=self.registry, buckets=buckets)

    def _label_value(self, label: str, value: str) -> str:
        """A label's value; what comes after too many different ones is "other"."""
        known_values = self._label_values.setdefault(label, set())
        if value not in known_values and len(known_values) >= MAX_LABEL_VALUES:
            return OTHER_LABEL
        known_values.add(value)
        return value

    def request(self, route: str, status: int, seconds: float, code: str | None = None) -> None:
        """An answer is over. `route` is the template of a path, `code` that of an error body."""
        route = self._label_value("route", route)
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        if status >= 400:
            self._failures.labels(OTHER_LABEL if code is None else self._label_value("code", code)).inc()

    def rejected(self, reason: str) -> None:
        """A request was refused to protect the service. The guard says so of every answer, whoever gave it."""
        self._rejected.labels(self._label_value("reason", reason)).inc()

    def observe_queue_wait(self, seconds: float) -> None:
        """A job has left the queue."""
        self._queue_wait_seconds.observe(seconds)

    def observe_stage(self, task: str, model: str, stage: str, seconds: float) -> None:
        """A part of a job is done."""
        self._inference_seconds.labels(
            self._label_value("task", task), self._label_value("model", model), self._label_value("stage", stage)
        ).observe(seconds)

    def observe_step(self, model: str, seconds: float) -> None:
        """A step of a solver is done."""
        self._step_seconds.labels(self._label_value("model", model)).observe(seconds)

    def images(self, task: str, model: str, count: int, pixels: int) -> None:
        """Pictures were made; `pixels` is the sum of all of them."""
        self._images.labels(self._label_value("task", task), self._label_value("model", model)).inc(count)
        self._pixels.inc(pixels)

    def batch(self, size: int) -> None:
        """So many jobs went to a worker together."""
        self._batch_sizes.observe(size)

    def count_cancelled(self, cause: str) -> None:
        """A job was stopped, by its client or because that went away."""
        self._cancelled.labels(self._label_value("cause", cause)).inc()

    def oom(self, fallback: str) -> None:
        """Memory was short, and a worker went on in another way."""
        self._oom.labels(self._label_value("fallback", fallback)).inc()

    def nonfinite(self, stage: str) -> None:
        """NaN or infinity came out of a network."""
        self._nonfinite.labels(self._label_value("stage", stage)).inc()

    def model_loaded(self, name: str, loaded: bool) -> None:
        """A model's weights came into memory, or left it."""
        self._loaded.labels(self._label_value("model", name)).set(int(loaded))

    def model_load(self, seconds: float) -> None:
        """A model's weights were read."""
        self._load_seconds.observe(seconds)

    def worker_restart(self) -> None:
        """A worker was started again."""
        self._restarts.inc()

    def memory(self, kind: str, num_bytes: float) -> None:
        """What the devices hold now."""
        self._memory_bytes.labels(self._label_value("kind", kind)).set(num_bytes)

    def jobs(self, counts: Mapping[str, int]) -> None:
        """How many jobs there are in each state; one that is not named has none."""
        for state in JOB_STATES:
            self._jobs.labels(state).set(counts.get(state, 0))

    def queue(self, size: int, running: int) -> None:
        """How many jobs wait and run now."""
        self._queue_size.set(size)
        self._running.set(running)

    def downloaded(self, num_bytes: int) -> None:
        """Bytes came from a URL that a request named."""
        self._download_bytes.inc(num_bytes)

    def render(self) -> bytes:
        """The text that `/metrics` answers with."""
        return generate_latest(self.registry)
