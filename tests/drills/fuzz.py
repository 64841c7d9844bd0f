"""Calls that schemathesis makes up from the service's own OpenAPI document, with all of its checks."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.drills import jobs
from tests.drills.figures import Figure, exactly, none
from tests.support.service import Served

SMALL = {
    "pixels": 65536,
    "upscale_pixels": 1024,
    "output_pixels": 4096,
    "bundled_pixels": 1024,
    "bundled_output_pixels": 4096,
    "steps": 3,
    "count": 2,
}
"""Bounds of a service to be fuzzed: whatever is asked for is done quickly."""

TOTAL = re.compile(r'enlarger_requests_total\{.*status="(\d+)"\} ([0-9.e+]+)')
CHANGED = re.compile(r"- violates (.+)")
AS_TEXT = re.compile(r"`type` at /properties/\w+ \(was string, became (boolean|integer|number)\)")
ACCEPTED = "Schema-violating request accepted"
FORMS = {f"POST /v1/images/{name}" for name in ("upscale", "variations", "inpainting")}
REFUSABLE = """
[[operations]]
include-method = "POST"
include-path-regex = "^/v1/images/"
checks.positive_data_acceptance.expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "429", "5xx"]
"""  # a schema can say neither that bytes are a picture nor that a mask is of its size: 400 is an answer there


def fuzz(served: Served, calls: int) -> list[Figure]:
    """Rounds of schemathesis, each with another seed, until so many calls were made."""
    made, seed, found = 0, 0, Counter[str]()
    before = answered(served)
    while made < calls:
        seed += 1
        report = one_round(served, seed, calls - made)
        assert report["test_cases"]["generated"], f"schemathesis made no calls: {report}"
        made += report["test_cases"]["generated"]
        for failure in report["failures"]:
            found[f"{failure['title']}: {', '.join(failure['operations'])}"] += failure["count"]
        for error in report["errors"]:
            found[error["title"]] += error.get("count", 1)
    after = answered(served)
    return [
        Figure("calls made up", made, least=calls),
        Figure("answers that the service counted", sum(after.values()) - sum(before.values())),
        none("of them with status 5xx", sum(n for status, n in (after - before).items() if status.startswith("5"))),
        exactly(said(found), found.total(), 0),
    ]


def only_text(failure: Mapping[str, Any], output: str) -> bool:
    """Whether it complains that a form's text was made a number or a boolean: in a form that is text again."""
    changes = CHANGED.findall(output)
    forms = failure["title"] == ACCEPTED and set(failure["operations"]) <= FORMS
    return forms and bool(changes) and all(AS_TEXT.fullmatch(change) for change in changes)


def said(found: Counter[str]) -> str:
    """The failures in one line."""
    worst = "; ".join(f"{what} ({count})" for what, count in found.most_common(8))
    return f"failed checks ({worst})" if found else "failed checks"


def one_round(served: Served, seed: int, wanted: int) -> dict[str, Any]:
    """One run of schemathesis; its report."""
    operations = sum(len(path) for path in jobs.get(served, "/openapi.json").json()["paths"].values())
    each = max(3, math.ceil(1.3 * wanted / operations))
    phases = "examples,fuzzing" if wanted < 1000 else "examples,coverage,fuzzing,stateful"
    with TemporaryDirectory() as place:
        file, config = Path(place) / "report.json", Path(place) / "schemathesis.toml"
        config.write_text(REFUSABLE)
        command = [str(Path(sys.executable).with_name("st")), "--config-file", str(config)]
        command += ["run", f"{served.url}/openapi.json", "--exclude-path", "/v1/jobs/events"]  # a stream without an end
        command += ["--checks", "all", "--phases", phases, "-n", str(each), "--seed", str(seed), "--no-color"]
        command += ["--continue-on-failure", "--no-shrink", "--workers", "2", "--suppress-health-check", "all"]
        command += ["--request-timeout", "60", "--max-response-time", "60", "--generation-database", "none"]
        command += ["--report", "json", "--report-json-path", str(file)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=quiet())
        assert file.is_file(), f"schemathesis ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        report = json.loads(file.read_text())
        report["failures"] = [each for each in report["failures"] if not only_text(each, done.stdout)]
        if report["failures"] or report["errors"]:
            sys.stderr.write(done.stdout)
        return report


def quiet() -> dict[str, str]:
    return os.environ | {"NO_COLOR": "1", "COLUMNS": "120", "PYTHONWARNINGS": "ignore"}


def answered(served: Served) -> Counter[str]:
    """Answers by status, as the service's metrics have them."""
    counts = Counter[str]()
    for status, count in TOTAL.findall(jobs.get(served, "/metrics").text):
        counts[status] += round(float(count))
    return counts
