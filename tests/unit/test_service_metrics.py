"""The metrics of the service: every documented name, and labels that stay few."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

import enlarger
from enlarger.service.metrics import MAX_LABEL_VALUES, Metrics
from enlarger.service.middleware.access_log import count_request

NAMES = """
enlarger_requests_total enlarger_request_failures_total enlarger_request_duration_seconds enlarger_queue_wait_seconds
enlarger_inference_duration_seconds enlarger_step_duration_seconds enlarger_queue_size enlarger_requests_running
enlarger_requests_rejected_total enlarger_images_total enlarger_output_pixels_total enlarger_batch_size
enlarger_cancelled_total enlarger_oom_total enlarger_nonfinite_total enlarger_model_loaded enlarger_model_load_seconds
enlarger_worker_restarts_total enlarger_device_memory_bytes enlarger_jobs enlarger_download_bytes_total
enlarger_build_info process_resident_memory_bytes
"""


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Values by name and labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    found = [sample for family in families for sample in family.samples]
    return {(each.name, ",".join(f"{k}={v}" for k, v in sorted(each.labels.items()))): each.value for each in found}


@pytest.fixture
def metrics() -> Metrics:
    """Each of them with something in it."""
    metrics = Metrics()
    count_request(metrics, "/v1/models", 200, 0.01)
    count_request(metrics, "/v1/images/upscale", 429, 0.01, "queue_full")
    metrics.queue_wait_seconds.observe(1)
    metrics.inference_seconds.labels("upscale", "bundled", "decode").observe(0.5)
    metrics.step_seconds.labels("bundled").observe(0.1)
    metrics.images.labels("upscale", "bundled").inc(2)
    metrics.output_pixels.inc(800)
    metrics.batch_size.observe(2)
    metrics.cancelled.labels("client").inc()
    metrics.oom.labels("tiles").inc()
    metrics.nonfinite.labels("decode").inc()
    metrics.model_loaded.labels("bundled").set(1)
    metrics.model_load_seconds.observe(2)
    metrics.worker_restarts.inc()
    metrics.device_memory_bytes.labels("allocated").set(1000)
    metrics.jobs.labels("queued").set(3)
    metrics.queue_size.set(3)
    metrics.requests_running.set(1)
    metrics.download_bytes.inc(10)
    return metrics


def test_every_documented_name_is_there(metrics: Metrics) -> None:
    found = {family.name for family in text_string_to_metric_families(metrics.render().decode())}
    assert {name.removesuffix("_total") for name in NAMES.split()} <= {name.removesuffix("_total") for name in found}
    unlabelled = samples(metrics)
    assert unlabelled[("process_resident_memory_bytes", "")] > 1e6


def test_what_is_measured_is_shown(metrics: Metrics) -> None:
    found = samples(metrics)
    assert found[("enlarger_requests_total", "route=/v1/models,status=200")] == 1
    assert found[("enlarger_request_failures_total", "code=queue_full")] == 1
    assert found[("enlarger_requests_rejected_total", "reason=queue_full")] == 1
    assert found[("enlarger_request_duration_seconds_count", "route=/v1/models")] == 1
    assert found[("enlarger_queue_wait_seconds_sum", "")] == 1
    assert found[("enlarger_inference_duration_seconds_sum", "model=bundled,stage=decode,task=upscale")] == 0.5
    assert found[("enlarger_images_total", "model=bundled,task=upscale")] == 2
    assert found[("enlarger_output_pixels_total", "")] == 800
    assert found[("enlarger_jobs", "state=queued")] == 3
    assert found[("enlarger_jobs", "state=failed")] == 0
    assert (found[("enlarger_queue_size", "")], found[("enlarger_requests_running", "")]) == (3, 1)
    assert found[("enlarger_model_loaded", "model=bundled")] == 1
    assert found[("enlarger_build_info", f"version={enlarger.__version__}")] == 1
    metrics.jobs.labels("queued").set(0)
    metrics.model_loaded.labels("bundled").set(0)
    later = samples(metrics)
    assert (later[("enlarger_jobs", "state=queued")], later[("enlarger_model_loaded", "model=bundled")]) == (0, 0)


def test_two_services_of_a_process_do_not_mix(metrics: Metrics) -> None:
    assert samples(Metrics()).get(("enlarger_images_total", "model=bundled,task=upscale")) is None


def test_labels_take_few_values() -> None:
    metrics = Metrics()
    for number in range(500):
        count_request(metrics, f"/{number}", 400, 0.1, f"code{number}")
        metrics.step_seconds.labels(f"model{number}").observe(0.1)
    found = samples(metrics)
    assert found[("enlarger_request_failures_total", "code=other")] == 500 - MAX_LABEL_VALUES
    routes = {labels for name, labels in found if name == "enlarger_request_duration_seconds_count"}
    assert len(routes) == MAX_LABEL_VALUES + 1 and "route=other" in routes
    assert found[("enlarger_step_duration_seconds_count", "model=other")] == 500 - MAX_LABEL_VALUES
