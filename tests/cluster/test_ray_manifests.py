"""The manifests of a cluster: they parse, and ask for what the program and its settings have."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from enlarger.cli.main import app
from enlarger.service.settings import load_settings

RAYS = {"--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"}  # options of `ray start`
DEPLOY = Path(__file__).parents[2] / "deploy"


def flags() -> set[str]:
    verbs: Any = get_command(app)
    serve = verbs.load("serve")
    return {option for parameter in serve.params for option in parameter.opts}


@pytest.mark.parametrize("name", ["raycluster.yaml", "compose-ray.yaml"])
def test_commands_are_the_programs(name: str) -> None:
    line = next(line for line in (DEPLOY / name).read_text().splitlines() if "--workers" in line)
    asked = {word.strip(",[]") for word in line.split() if word.startswith("--")} - RAYS
    assert {"--ray", "--workers", "--data"} <= asked <= flags()


def test_the_pod_of_the_head_has_the_service_and_its_disk() -> None:
    cluster, claim = yaml.safe_load_all((DEPLOY / "raycluster.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    service = next(each for each in head["containers"] if each["name"] == "enlarger")
    assert {mount["name"] for mount in service["volumeMounts"]} == {volume["name"] for volume in head["volumes"]}
    assert head["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert head["terminationGracePeriodSeconds"] > load_settings().drain_seconds
    workers = cluster["spec"]["workerGroupSpecs"][0]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_only_the_service_is_reached_from_outside() -> None:
    compose = yaml.safe_load((DEPLOY / "compose-ray.yaml").read_text())
    assert compose["networks"]["cluster"]["internal"]
    assert [name for name, each in compose["services"].items() if "ports" in each] == ["enlarger"]
