"""How clients that exist speak to the routes: the documented dialect, LocalAI's, and the `openai` package."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image
from pydantic import TypeAdapter

from enlarger import sampler_names
from enlarger.checkpoint.families import KINDS
from enlarger.diffusion.solvers import SOLVERS
from enlarger.service.jobs.job import JobSpec, job_folder
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.problems import Problem, ProblemError
from enlarger.service.routes.parsed_request import (
    build_job_spec,
    parse_edit,
    parse_generation,
    parse_upscale,
    parse_variation,
)
from enlarger.service.routes.request_models import Edit, Generation, UpscaleForm, Variation
from enlarger.service.settings import Bounds
from tests.support.fake_service import FakeService, fake_service, serve_in_thread

SD = ModelState("sd", "sd", ("generate", "refine", "inpaint"), ())
BOUNDS = Bounds()


def file_of(width: int = 24, height: int = 16, mode: str = "RGB", colour: Any = 0) -> tuple[str, bytes, str]:
    stream = io.BytesIO()
    Image.new(mode, (width, height), colour).save(stream, "PNG")
    return "picture.png", stream.getvalue(), "image/png"


def data_url(width: int = 24, height: int = 16, mode: str = "RGB", colour: Any = 0) -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(width, height, mode, colour)[1]).decode()


def size_of(item: Any) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(item))).size


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeService, str]]:
    fake = fake_service(tmp_path_factory.mktemp("service"))
    with serve_in_thread(fake.app) as url:
        yield fake, url


@pytest.fixture
def fake(running: tuple[FakeService, str]) -> Iterator[FakeService]:
    yield running[0]
    running[0].queue.known.clear()
    running[0].queue.problem = None


@pytest.fixture
def client(running: tuple[FakeService, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running[1]}/v1", api_key="none", max_retries=0) as made:
        yield made


def asked(fake: FakeService) -> JobSpec:
    (job,) = fake.queue.known.values()
    return job.spec


# The two dialects of /v1/images/upscale


def upscaled(fake: FakeService, url: str, **data: str) -> tuple[dict[str, Any], JobSpec]:
    answer = httpx2.post(f"{url}/v1/images/upscale", files={"image": file_of()}, data=data)
    assert answer.status_code == 200, answer.text
    return answer.json(), asked(fake)


def test_the_documented_dialect_answers_pictures(fake: FakeService, running: tuple[FakeService, str]) -> None:
    body, job_spec = upscaled(fake, running[1], prompt="a man", n="1", guidance_scale="8", model="tiny-x2")
    assert size_of(body["data"][0]["b64_json"]) == (48, 32)
    assert job_spec.options["guidance"] == 8.0
    assert job_spec.options["steps"] == 25


def test_the_dialect_of_localai_answers_addresses(fake: FakeService, running: tuple[FakeService, str]) -> None:
    body, job_spec = upscaled(fake, running[1], model="bundled", scale="4")
    assert "b64_json" not in body["data"][0]
    answer = httpx2.get(body["data"][0]["url"])
    assert Image.open(io.BytesIO(answer.content)).size == (96, 64)
    assert job_spec.options["by"] == 4.0


CASES: list[tuple[dict[str, Any], str, dict[str, Any], bool]] = [
    ({"prompt": ""}, "x2", {"by": 2.0, "steps": 25, "guidance": 7.5, "prompt": ""}, False),
    ({"prompt": "a"}, "bundled", {"by": 2.0, "prompt": "a"}, False),
    ({"prompt": "a", "num_inference_steps": 3, "guidance_scale": 0.0}, "x2", {"steps": 3, "guidance": 0.0}, False),
    ({"prompt": "a", "response_format": "url"}, "x2", {"steps": 25}, True),
    ({}, "x2", {"by": 2.0}, True),
    ({"scale": 3.5, "prompt": "a"}, "x2", {"by": 3.5, "prompt": "a"}, True),
    ({"scale": 2.0, "response_format": "b64_json"}, "x2", {"by": 2.0}, False),
    ({"detail": 0.0, "consistent": False, "noise_level": 0.0}, "bundled", {"detail": 0.0, "consistent": False}, True),
    ({"restore": 0.5}, "bundled", {"restore": 0.5}, True),
]


@pytest.mark.parametrize(("fields", "kind", "options", "url"), CASES)
def test_which_dialect_it_is(fields: dict[str, Any], kind: str, options: dict[str, Any], url: bool) -> None:
    parsed = parse_upscale(UpscaleForm(**fields, seed=0), BOUNDS, KINDS[kind].unused_options)
    assert options.items() <= parsed.options.items()
    assert parsed.url == url
    assert ("steps" in parsed.options) == ("steps" in options)
    assert (parsed.options["seed"], parsed.options["count"], parsed.options["long_prompt"]) == (0, 1, True)


# Asks


def test_generations_as_asks() -> None:
    body = Generation(prompt="a", size="65x33", n=2, seed=0, upscale=True, output_format="jpeg", output_compression=0)
    job_spec = build_job_spec(parse_generation(body, BOUNDS, "finisher"), SD, BOUNDS)
    assert job_spec.size == (130, 66)
    assert job_spec.options == {
        "prompt": "a",
        "seed": 0,
        "count": 2,
        "long_prompt": True,
        "width": 65,
        "height": 33,
        "refiner": "finisher",
        "upscale": 2.0,
    }
    assert (job_spec.output.format, job_spec.output.quality) == ("jpeg", 1)
    assert job_spec.notes == ("output_compression 0 is written as 1, the least there is",)
    assert TypeAdapter(JobSpec).validate_json(json.dumps(asdict(job_spec))) == job_spec
    plain = parse_generation(Generation(prompt="", upscale=1.0, negative_prompt="", guidance_scale=0.0), BOUNDS, None)
    assert plain.options.keys() == {"prompt", "negative", "guidance", "seed", "count", "long_prompt"}
    assert build_job_spec(plain, SD, BOUNDS).size is None


def test_edits_and_variations_as_asks() -> None:
    masked, whole = (parse_edit(Edit(prompt="a"), BOUNDS, mask) for mask in (True, False))
    assert (masked.task, "strength" in masked.options) == ("inpaint", False)
    assert (whole.task, whole.options["strength"]) == ("refine", 0.75)
    assert parse_edit(Edit(prompt="a", strength=0.0), BOUNDS, False).options["strength"] == 0.0
    job_spec = build_job_spec(masked, SD, BOUNDS, (10, 20), ("a note",))
    assert (job_spec.image, job_spec.mask, job_spec.size, job_spec.notes) == (
        "image.png",
        "mask.png",
        (10, 20),
        ("a note",),
    )
    varied = parse_variation(Variation(), BOUNDS)
    assert (varied.task, varied.options["prompt"], varied.options["strength"]) == ("refine", "", 0.6)


def test_what_an_ask_may_not_say() -> None:
    parsed = parse_generation(Generation(prompt="a", size="64x64"), Bounds(output_pixels=4096), None)
    with pytest.raises(ProblemError, match="64x64 pixels, expected at most 4,095"):
        build_job_spec(parsed, SD, Bounds(output_pixels=4095))
    many = parse_generation(Generation(prompt="a", size="64x64", n=10), Bounds(), None)
    with pytest.raises(ProblemError, match="the result would have 10 times 64x64 pixels, expected at most 40,959"):
        build_job_spec(many, SD, Bounds(output_pixels=40959))
    with pytest.raises(ProblemError, match="n is 3, expected 1 to 2"):
        parse_generation(Generation(prompt="a", n=3), Bounds(count=2), None)


def test_the_names_of_solvers_are_those_of_the_library() -> None:
    assert set(sampler_names.SOLVERS) == set(SOLVERS)


# The openai package


def test_generate(client: openai.OpenAI, fake: FakeService) -> None:
    made = client.images.generate(prompt="a cat", model="dall-e-2", n=2, size="64x48", extra_body={"seed": 0})
    assert made.data is not None
    assert [size_of(item.b64_json) for item in made.data] == [(64, 48)] * 2
    assert made.usage is not None
    assert made.usage.total_tokens == 5 + 2 * 4 * 3
    assert made.background == "opaque"
    assert asked(fake).model == "tiny-sd"
    assert asked(fake).options["seed"] == 0


def test_generate_with_a_refiner_and_enlarged(client: openai.OpenAI, fake: FakeService) -> None:
    extra = {"refiner": True, "upscale": 2, "num_inference_steps": 3}
    made = client.images.generate(prompt="a cat", model="tiny-sd", size="64x48", extra_body=extra)
    assert made.data is not None
    assert size_of(made.data[0].b64_json) == (128, 96)
    assert asked(fake).options["refiner"] == "tiny-refiner"


def test_edit_with_a_mask(client: openai.OpenAI, fake: FakeService) -> None:
    mask = file_of(mode="L", colour=255)
    made = client.images.edit(
        image=file_of(), mask=mask, prompt="a hat", extra_body={"seed": 3, "mask_mode": "luminance"}
    )
    assert made.data is not None
    assert size_of(made.data[0].b64_json) == (24, 16)
    job_spec = asked(fake)
    assert (job_spec.task, job_spec.image, job_spec.mask, job_spec.size) == (
        "inpaint",
        "image.png",
        "mask.png",
        (24, 16),
    )
    (job,) = fake.queue.known
    assert {"image.png", "mask.png"} <= {file.name for file in job_folder(fake.settings.data, job).iterdir()}
    assert not list((fake.settings.data / "spool").iterdir())


def test_edit_takes_the_mask_from_the_picture(client: openai.OpenAI, fake: FakeService) -> None:
    client.images.edit(image=[file_of(mode="RGBA", colour=(9, 9, 9, 0))], prompt="a hat")
    assert (asked(fake).task, asked(fake).mask) == ("inpaint", "mask.png")


def test_edit_of_a_whole_picture(client: openai.OpenAI, fake: FakeService) -> None:
    made = client.images.edit(image=file_of(), prompt="a hat", size="40x40", input_fidelity="high")
    assert made.data is not None
    assert size_of(made.data[0].b64_json) == (40, 40)
    assert asked(fake).task == "refine"
    said = made.to_dict()["enlarger"]["warnings"]  # type: ignore[index]
    assert "input_fidelity high changes nothing here" in said
    assert any("cropped from 24x16 to 40x40" in one for one in said)


def test_variation(client: openai.OpenAI, fake: FakeService) -> None:
    with pytest.deprecated_call():
        made = client.images.create_variation(image=file_of(), n=2, extra_body={"seed": 1})
    assert made.data is not None
    assert [size_of(item.b64_json) for item in made.data] == [(24, 16)] * 2
    assert asked(fake).options["strength"] == 0.6


def test_a_stream_of_pictures(client: openai.OpenAI, fake: FakeService) -> None:
    events = list(client.images.generate(prompt="a", size="64x48", stream=True, partial_images=2, n=2))
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert [size_of(event.b64_json) for event in events] == [(8, 8), (8, 8), (64, 48), (64, 48)]
    assert events[-1].usage.input_tokens_details.text_tokens == 5
    assert {event.size for event in events} == {"64x48"}
    assert asked(fake).previews == 2


def test_a_stream_of_edits(client: openai.OpenAI, fake: FakeService) -> None:
    events = list(client.images.edit(image=file_of(), prompt="a", stream=True, partial_images=0))
    assert [event.type for event in events] == ["image_edit.completed"]
    assert events[0].background == "auto"


def test_a_stream_that_fails_raises(client: openai.OpenAI, fake: FakeService) -> None:
    fake.queue.problem = Problem(500, "out_of_memory", "too little memory")
    with pytest.raises(openai.APIError, match="too little memory") as caught:
        list(client.images.generate(prompt="a", stream=True))
    assert caught.value.code == "out_of_memory"


def test_progress_is_in_comments_that_the_package_skips(running: tuple[FakeService, str], fake: FakeService) -> None:
    body = {"prompt": "a", "stream": True}
    text = httpx2.post(f"{running[1]}/v1/images/generations", json=body).text
    assert text.startswith(": queued\n\n")
    assert ": denoise 1/4 eta 1.5\n\n" in text
    assert "event: image_generation.completed\ndata: {" in text


def test_a_stream_is_not_put_off(client: openai.OpenAI, fake: FakeService) -> None:
    events = list(client.images.generate(prompt="a", stream=True, extra_headers={"Prefer": "respond-async"}))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-sd", "tiny-refiner", "bundled", "tiny-x2"]
    assert client.models.retrieve("dall-e-2").id == "tiny-sd"
    with pytest.raises(openai.NotFoundError, match="no-such") as caught:
        client.models.retrieve("no-such")
    assert caught.value.code == "model_not_found"


def test_errors_are_raised_as_the_package_knows_them(client: openai.OpenAI, fake: FakeService) -> None:
    with pytest.raises(openai.BadRequestError, match="paint every pixel") as caught:
        client.images.generate(prompt="a", background="transparent")
    assert (caught.value.code, caught.value.param) == ("unsupported", "background")
    with pytest.raises(openai.BadRequestError, match="found 2 pictures in image"):
        client.images.edit(image=[file_of(), file_of()], prompt="a")
    with pytest.raises(openai.BadRequestError, match="upscale is for generations alone"):
        client.images.edit(image=file_of(), prompt="a", extra_body={"upscale": True})
    assert not fake.queue.known


# JSON edits, inpainting


def edit(url: str, **body: Any) -> httpx2.Response:
    headers = {"Content-Type": "application/json"}
    return httpx2.post(f"{url}/v1/images/edits", content=json.dumps({"prompt": "a"} | body), headers=headers)


def test_edits_in_json(running: tuple[FakeService, str], fake: FakeService) -> None:
    mask = {"image_url": data_url(mode="L", colour=255)}
    answer = edit(running[1], images=[{"image_url": data_url()}], mask=mask, mask_mode="luminance")
    assert size_of(answer.json()["data"][0]["b64_json"]) == (24, 16)
    assert asked(fake).task == "inpaint"


JSON_REFUSED: list[tuple[dict[str, Any], str, str | None, str]] = [
    ({}, "missing_parameter", "images", "images is missing"),
    ({"images": []}, "invalid_value", "images", "images is []"),
    ({"images": [{}]}, "missing_parameter", "images", "has no image_url"),
    ({"images": [{"file_id": "f"}]}, "image_file_not_found", "images", "there is no file 'f'"),
    ({"images": [{"image_url": "http://h/x.png"}]}, "invalid_image_url", "image", "fetches no URLs"),
    ({"images": [{"image_url": "data:image/png;base64,!!"}]}, "invalid_base64_image", "image", "not base64"),
    ({"images": [{"image_url": data_url()}, {"image_url": data_url()}]}, "unsupported", "images", "found 2 pictures"),
    ({"images": [{"image_url": data_url(), "x": 1}]}, "invalid_value", "images.0.x", "Extra inputs"),
    ({"images": [{"image_url": "\ud800"}]}, "invalid_image_url", "image", "fetches no URLs"),
    ({"images": [{"image_url": data_url()}], "strength": 2}, "invalid_value", "strength", "strength is 2"),
    (
        {"images": [{"image_url": data_url()}], "mask": {"image_url": data_url(9, 9)}},
        "mask_size_mismatch",
        "mask",
        "size",
    ),
]


@pytest.mark.parametrize(("body", "code", "param", "text"), JSON_REFUSED)
def test_edits_in_json_that_are_refused(
    running: tuple[FakeService, str], fake: FakeService, body: dict[str, Any], code: str, param: str | None, text: str
) -> None:
    answer = edit(running[1], **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error
    assert text in error["message"]
    assert not fake.queue.known


def test_inpainting_of_localai(running: tuple[FakeService, str], fake: FakeService) -> None:
    url = f"{running[1]}/v1/images/inpainting"
    files = {"image": file_of(), "mask": file_of(mode="L", colour=255)}
    answer = httpx2.post(url, files=files, data={"prompt": "a", "mask_mode": "luminance"})
    assert httpx2.get(answer.json()["data"][0]["url"]).headers["content-type"] == "image/png"
    assert asked(fake).options["steps"] == 25
    missing = httpx2.post(url, files={"image": file_of()}, data={"prompt": "a"})
    assert missing.json()["error"]["message"] == "mask is missing; send it as a file, white is repainted"


def test_the_folder_is_empty_after_refusals(
    running: tuple[FakeService, str], fake: FakeService, tmp_path: Path
) -> None:
    before = fake.leftover_files
    edit(running[1], images=[{"image_url": data_url()}], mask={"image_url": data_url(9, 9)})
    assert fake.leftover_files == before
