"""Calls that schemathesis makes up from the service's own OpenAPI document, with all of its checks."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.drills.figures import Figure, exactly, none
from tests.support.service import Served

SMALL = {"pixels": 65536, "upscale_pixels": 16384, "output_pixels": 65536, "steps": 3, "count": 2}
"""Bounds of a service to be fuzzed: whatever is asked for is done quickly."""

TOTAL = re.compile(r"enlarger_requests_total\{([^}]*)\} ([0-9.e+]+)")


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
        assert not report["errors"], f"schemathesis could not test: {report['errors']}"
    after = answered(served)
    return [
        Figure("calls made up", made, least=calls),
        Figure("answers that the service counted", sum(after.values()) - sum(before.values())),
        none("of them with status 5xx", sum(n for status, n in (after - before).items() if status.startswith("5"))),
        exactly(said(found), found.total(), 0),
    ]


def said(found: Counter[str]) -> str:
    """The failures in one line."""
    worst = "; ".join(f"{what} ({count})" for what, count in found.most_common(8))
    return f"failed checks ({worst})" if found else "failed checks"


def one_round(served: Served, seed: int, wanted: int) -> dict[str, Any]:
    """One run of schemathesis; its report."""
    operations = sum(len(path) for path in served.get("/openapi.json").json()["paths"].values())
    each = max(3, -(-wanted // (2 * operations)))
    phases = "examples,fuzzing" if wanted < 1000 else "examples,coverage,fuzzing,stateful"
    with TemporaryDirectory() as place:
        file = Path(place) / "report.json"
        command = [str(Path(sys.executable).with_name("st")), "run", f"{served.url}/openapi.json"]
        command += ["--checks", "all", "--phases", phases, "-n", str(each), "--seed", str(seed), "--no-color"]
        command += ["--continue-on-failure", "--no-shrink", "--workers", "2", "--suppress-health-check", "all"]
        command += ["--request-timeout", "60", "--generation-database", "none"]
        command += ["--report", "json", "--report-json-path", str(file)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=quiet())
        assert file.is_file(), f"schemathesis ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        kept = os.environ.get("ENLARGER_DRILL_OUT")
        if kept:
            Path(kept, f"fuzz-{seed}.txt").write_text(done.stdout)
        return json.loads(file.read_text())


def quiet() -> dict[str, str]:
    return os.environ | {"NO_COLOR": "1", "COLUMNS": "120", "PYTHONWARNINGS": "ignore"}


def answered(served: Served) -> Counter[str]:
    """Answers by status, as the service's metrics have them."""
    counts = Counter[str]()
    for labels, count in TOTAL.findall(served.get("/metrics").text):
        status = re.search(r'status="([^"]*)"', labels)
        counts[status.group(1) if status else "none"] += round(float(count))
    return counts
