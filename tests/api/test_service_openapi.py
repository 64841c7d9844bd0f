"""The OpenAPI document: complete, with examples that are true, and kept by the routes whatever they are sent."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.fake_service import FakeService, fake_service

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="jsonschema_rs is not installed; schemathesis brings it")

schemathesis.checks.load_all_checks()
EVERY = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
CHECKS = [schemathesis.checks.CHECKS.get_one(name) for name in (*EVERY, "response_headers_conformance")]
OPEN = {"/v1/", "/healthz", "/readyz", "/health", "/v1/images/{id}/content"}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeService:
    return fake_service(tmp_path_factory.mktemp("service"), queue=10_000)


@pytest.fixture(scope="module")
def document(fake: FakeService) -> dict[str, Any]:
    return fake.app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_everything_is_described(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for path, method, operation in operations(document):
        assert operation["summary"], path
        assert operation["description"], path
        assert "422" not in operation["responses"], (method, path)
        assert ("security" in operation) == (path not in OPEN), path
        for parameter in operation["parameters"]:
            assert parameter["description"], (path, parameter)
    schemes = document["components"]["securitySchemes"]
    assert {(one["type"], one.get("scheme"), one.get("name")) for one in schemes.values()} == {
        ("http", "bearer", None),
        ("apiKey", None, "X-API-Key"),
    }
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_refusal_has_the_one_form(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and path not in OPEN:
                assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
                assert answer["description"], (path, status)


def test_bodies_have_examples_that_are_valid(document: dict[str, Any]) -> None:
    found = 0
    for path, _, operation in operations(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            schema = {**content["schema"]}
            schema["required"] = [name for name in schema.get("required", ()) if name not in ("image", "mask")]
            jsonschema_rs.validate(schema, content["example"])
            found += 1
            names = set(schema["properties"])
            assert {"n", "model", "seed", "response_format"} <= names, path
            if kind == "multipart/form-data":
                assert "null" not in str(schema["properties"]["n"])
    assert found == 6


def test_answers_have_examples_that_are_valid(document: dict[str, Any]) -> None:
    found = 0
    for _, _, operation in operations(document):
        for answer in operation["responses"].values():
            content = answer.get("content", {}).get("application/json", {})
            if "example" in content:
                whole = content["schema"] | {"components": document["components"]}
                jsonschema_rs.validate(whole, content["example"])
                found += 1
    assert found > 100


def test_the_limits_of_the_settings_are_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = fake_service(tmp_path_factory.mktemp("small"), bounds={"count": 3, "steps": 7, "prompt": 90})
    body = made.app.openapi()["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]
    properties = body["application/json"]["schema"]["properties"]
    assert properties["n"]["maximum"] == 3
    assert properties["num_inference_steps"]["maximum"] == 7
    assert properties["prompt"]["maxLength"] == properties["negative_prompt"]["maxLength"] == 90


QUICK = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def test_calls_that_are_made_up_get_documented_answers(fake: FakeService) -> None:
    api = schemathesis.openapi.from_asgi("/openapi.json", fake.app)
    made = 0
    for found in api.get_all_operations():
        if found.ok().path == "/v1/jobs/events":  # a stream without an end
            continue

        @QUICK
        @given(case=found.ok().as_strategy())
        def call(case: Any) -> None:
            nonlocal made
            made += 1
            case.call_and_validate(checks=CHECKS)

        call()
    assert made > 20
