"""What the service counts and times, for Prometheus. Labels take a bounded set of values, and no text of a client."""

from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from enlarger import __version__

JOB_STATES = ("queued", "running", "succeeded", "failed", "canceled")
OTHER_LABEL = "other"
MAX_LABEL_VALUES = 100  # values of one label
SHORT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LONG_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class BoundedLabels(Generic[Metric]):
    """A metric with labels. A value that comes after too many different ones of its label is counted as "other"."""

    def __init__(self, metric: Metric, num_labels: int) -> None:
        self._metric = metric
        self._known_values = tuple(set[str]() for _ in range(num_labels))

    def labels(self, *values: str) -> Metric:
        """The metric of these values, one for each label."""
        bounded = [self._bounded(known, value) for known, value in zip(self._known_values, values, strict=True)]
        return self._metric.labels(*bounded)

    def _bounded(self, known: set[str], value: str) -> str:
        if value not in known and len(known) >= MAX_LABEL_VALUES:
            return OTHER_LABEL
        known.add(value)
        return value


class Metrics:
    """All of them, in a registry of their own, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # the server's memory, time and open files
        self._add_request_metrics()
        self._add_job_metrics()
        self._add_model_metrics()

    def _add_request_metrics(self) -> None:
        self.requests = self._counter("requests", "answers", "route", "status")
        self.request_failures = self._counter("request_failures", "answers that are errors", "code")
        self.requests_rejected = self._counter("requests_rejected", "requests refused to protect the service", "reason")
        self.request_seconds = BoundedLabels(
            self._histogram("request_duration_seconds", "from head to end of answer", LONG_BUCKETS, "route"), 1
        )

    def _add_job_metrics(self) -> None:
        self.queue_wait_seconds = self._histogram("queue_wait_seconds", "from asking to starting", LONG_BUCKETS)
        labels = ("task", "model", "stage")
        self.inference_seconds = BoundedLabels(
            self._histogram("inference_duration_seconds", "parts of jobs", LONG_BUCKETS, *labels), len(labels)
        )
        self.step_seconds = BoundedLabels(
            self._histogram("step_duration_seconds", "steps of the solver", SHORT_BUCKETS, "model"), 1
        )
        self.queue_size = Gauge("enlarger_queue_size", "jobs that wait", registry=self.registry)
        self.requests_running = Gauge("enlarger_requests_running", "jobs that run", registry=self.registry)
        self.images = self._counter("images", "pictures made", "task", "model")
        self.output_pixels = Counter("enlarger_output_pixels", "pixels of pictures made", registry=self.registry)
        self.batch_size = self._histogram("batch_size", "jobs that ran together", (1, 2, 3, 4, 6, 8, 12, 16))
        self.cancelled = self._counter("cancelled", "jobs that were stopped", "cause")
        self.jobs = self._gauge("jobs", "jobs that are kept", "state")
        for state in JOB_STATES:
            self.jobs.labels(state).set(0)

    def _add_model_metrics(self) -> None:
        self.oom = self._counter("oom", "times that memory was short, and what helped", "fallback")
        self.nonfinite = self._counter("nonfinite", "times that NaN or infinity came out", "stage")
        self.model_loaded = self._gauge("model_loaded", "1 while the model's weights are in memory", "model")
        self.model_load_seconds = self._histogram("model_load_seconds", "reading of a model's weights", LONG_BUCKETS)
        restarts = "workers started again after a death"
        self.worker_restarts = Counter("enlarger_worker_restarts", restarts, registry=self.registry)
        self.device_memory_bytes = self._gauge("device_memory_bytes", "memory of the devices in use", "kind")
        fetched = "bytes fetched from URLs in requests"
        self.download_bytes = Counter("enlarger_download_bytes", fetched, registry=self.registry)
        self._gauge("build_info", "1; the version is in the label", "version").labels(__version__).set(1)

    def _counter(self, name: str, help: str, *labels: str) -> BoundedLabels[Counter]:
        return BoundedLabels(Counter(f"enlarger_{name}", help, labels, registry=self.registry), len(labels))

    def _gauge(self, name: str, help: str, *labels: str) -> BoundedLabels[Gauge]:
        return BoundedLabels(Gauge(f"enlarger_{name}", help, labels, registry=self.registry), len(labels))

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"enlarger_{name}", help, labels, registry=self.registry, buckets=buckets)

    def render(self) -> bytes:
        """The text that `/metrics` answers with."""
        return generate_latest(self.registry)
