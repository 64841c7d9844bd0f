"""The metrics of the service: every documented name, and labels that stay few."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

import enlarger
from enlarger.service.middleware.metrics import MAX_LABEL_VALUES, Metrics

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
    """Each of them told something."""
    told = Metrics()
    told.request("/v1/models", 200, 0.01)
    told.request("/v1/images/upscale", 429, 0.01, "queue_full")
    told.rejected("queue_full")
    told.observe_queue_wait(1)
    told.observe_stage("upscale", "bundled", "decode", 0.5)
    told.observe_step("bundled", 0.1)
    told.images("upscale", "bundled", 2, 800)
    told.batch(2)
    told.count_cancelled("client")
    told.oom("tiles")
    told.nonfinite("decode")
    told.model_loaded("bundled", True)
    told.model_load(2)
    told.worker_restart()
    told.memory("allocated", 1000)
    told.jobs({"queued": 3})
    told.queue(3, 1)
    told.downloaded(10)
    return told


def test_every_documented_name_is_there(metrics: Metrics) -> None:
    found = {family.name for family in text_string_to_metric_families(metrics.render().decode())}
    assert {name.removesuffix("_total") for name in NAMES.split()} <= {name.removesuffix("_total") for name in found}
    unlabelled = samples(metrics)
    assert unlabelled[("process_resident_memory_bytes", "")] > 1e6


def test_what_is_told_is_shown(metrics: Metrics) -> None:
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
    metrics.jobs({})
    metrics.model_loaded("bundled", False)
    later = samples(metrics)
    assert (later[("enlarger_jobs", "state=queued")], later[("enlarger_model_loaded", "model=bundled")]) == (0, 0)


def test_two_services_of_a_process_do_not_mix(metrics: Metrics) -> None:
    assert samples(Metrics()).get(("enlarger_images_total", "model=bundled,task=upscale")) is None


def test_labels_take_few_values() -> None:
    metrics = Metrics()
    for number in range(500):
        metrics.request(f"/{number}", 400, 0.1, f"code{number}")
        metrics.observe_step(f"model{number}", 0.1)
    found = samples(metrics)
    assert found[("enlarger_request_failures_total", "code=other")] == 500 - MAX_LABEL_VALUES
    routes = {labels for name, labels in found if name == "enlarger_request_duration_seconds_count"}
    assert len(routes) == MAX_LABEL_VALUES + 1 and "route=other" in routes
    assert found[("enlarger_step_duration_seconds_count", "model=other")] == 500 - MAX_LABEL_VALUES
