"""docs/service.md and deploy/ say what the code says: settings, metrics, errors, routes; sample configurations load."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from enlarger.service.app import create_app
from enlarger.service.settings import load_settings
from tests.support.settings_table import DOCUMENT, filled

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CODE = re.compile(r'(?:refuse|Fault)\(\s*(\d{3}),\s*"([a-z_]+)"')


def test_the_tables_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert filled(text) == text, "write them anew: python -m tests.support.settings_table"


def test_every_error_is_listed_with_its_status() -> None:
    raised = {
        found for path in (ROOT / "enlarger" / "service").rglob("*.py") for found in CODE.findall(path.read_text())
    }
    rows = re.findall(r"^\| (\d{3}) \|(.*?)\|", DOCUMENT.read_text(), re.M)
    listed = {(status, code) for status, codes in rows for code in re.findall(r"`([a-z_]+)`", codes)}
    assert raised - listed == set()


def test_every_route_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENLARGER_CONFIG", raising=False)
    paths = create_app(load_settings(data=tmp_path)).openapi()["paths"]
    text = DOCUMENT.read_text()
    assert [path for path in paths if f"`{path.replace(':path', '')}`" not in text] == []


def test_the_sample_configuration_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENLARGER_CONFIG", str(DEPLOY / "enlarger.toml"))
    settings = load_settings()
    assert (settings.port, settings.host, settings.queue, settings.bounds.steps) == (8997, "127.0.0.1", 16, 150)


def test_commented_settings_of_the_sample_load_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DEPLOY / "enlarger.toml").read_text().replace("sha256:...", f"sha256:{'0' * 64}")
    file = tmp_path / "enlarger.toml"
    file.write_text(re.sub(r"^# (?=[a-z]+ = |\[\[)", "", text, flags=re.M))
    monkeypatch.setenv("ENLARGER_CONFIG", str(file))
    settings = load_settings()
    assert [model.name for model in settings.models] == ["sd", "x2"]
    assert (settings.hosts, len(settings.keys)) == (("pictures.example.org",), 1)


def test_the_unit_gives_more_time_than_draining_takes() -> None:
    unit = (DEPLOY / "enlarger.service").read_text()
    seconds = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)[0])
    assert seconds > load_settings().drain_seconds


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_sound_and_hardened(tmp_path: Path) -> None:
    unit = tmp_path / "enlarger.service"
    unit.write_text((DEPLOY / "enlarger.service").read_text().replace("/opt/enlarger/bin/enlarger", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert float(re.findall(r"Overall exposure level for enlarger.service: ([\d.]+)", said.stdout)[0]) <= 1.5


def test_the_container_runs_the_service_as_an_ordinary_user() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert "USER 10001" in lines
    assert "EXPOSE 8997" in lines
    assert [line for line in lines if line.startswith("CMD")] == ['CMD ["serve", "--host", "0.0.0.0"]']
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert [name for name in copied if not (ROOT / name).exists()] == []
