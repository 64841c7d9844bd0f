"""The `openai` package as a client: generate, edit, variation, stream, models, and its errors."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from tests.support import tiny
from tests.support.service import Served, running


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with running(models=("tiny-sd", "tiny-inpaint")) as served:
        yield served


@pytest.fixture(scope="module")
def client(service: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def file_of(image: Image.Image, name: str = "picture.png") -> tuple[str, bytes, str]:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return name, stream.getvalue(), "image/png"


def picture_of(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


FEW: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}


def test_generate_makes_n_pictures_of_the_size(client: openai.OpenAI) -> None:
    made = client.images.generate(model="tiny-sd", prompt="a cat", n=2, size="100x64", extra_body=FEW)
    assert made.data is not None
    first, second = (picture_of(one.b64_json) for one in made.data)
    assert first.size == second.size == (100, 64)
    assert first.tobytes() != second.tobytes()
    again = client.images.generate(model="tiny-sd", prompt="a cat", size="100x64", extra_body=FEW)
    assert again.data is not None
    assert picture_of(again.data[0].b64_json).tobytes() == first.tobytes()


def test_edit_leaves_what_the_mask_keeps(client: openai.OpenAI) -> None:
    image = tiny.picture(64, 96)
    alpha = np.full((96, 64, 4), 255, np.uint8)
    alpha[:48, :, 3] = 0  # OpenAI's sense: transparent is edited
    mask = Image.fromarray(alpha)
    made = client.images.edit(
        model="tiny-sd", image=file_of(image), mask=file_of(mask, "mask.png"), prompt="a hat", extra_body=FEW
    )
    assert made.data is not None
    edited = np.array(picture_of(made.data[0].b64_json))
    assert edited.shape == (96, 64, 3)
    assert (edited[48:] == np.array(image)[48:]).all()
    assert (edited[:40] != np.array(image)[:40]).any()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the package deprecates the route itself
def test_variation_has_the_size_and_other_pixels(client: openai.OpenAI) -> None:
    image = tiny.picture(64, 64)
    extra = {key: str(value) for key, value in FEW.items()}
    made = client.images.create_variation(model="tiny-sd", image=file_of(image), n=1, extra_body=extra)
    assert made.data is not None
    varied = picture_of(made.data[0].b64_json)
    assert varied.size == (64, 64)
    assert varied.tobytes() != image.tobytes()


def test_a_stream_gives_partial_pictures_and_the_whole(client: openai.OpenAI) -> None:
    events = list(
        client.images.generate(
            model="tiny-sd",
            prompt="a cat",
            size="64x64",
            stream=True,
            partial_images=2,
            extra_body={"num_inference_steps": 6, "seed": 3},
        )
    )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    plain = client.images.generate(
        model="tiny-sd",
        prompt="a cat",
        size="64x64",
        extra_body={"num_inference_steps": 6, "seed": 3},
    )
    assert plain.data is not None
    assert picture_of(events[-1].b64_json).tobytes() == picture_of(plain.data[0].b64_json).tobytes()


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} >= {"tiny-sd", "tiny-inpaint", "bundled"}
    assert client.models.retrieve("tiny-sd").object == "model"
    with pytest.raises(openai.NotFoundError, match="no-such-model") as caught:
        client.images.generate(model="no-such-model", prompt="a cat")
    assert caught.value.code == "model_not_found"


def test_an_error_in_a_stream_is_raised(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="solver"):
        list(
            client.images.generate(
                model="tiny-sd",
                prompt="a cat",
                size="64x64",
                stream=True,
                extra_body={"scheduler": "no-such"},
            )
        )


def test_a_url_gives_the_picture(client: openai.OpenAI, service: Served) -> None:
    made = client.images.generate(
        model="tiny-sd",
        prompt="a cat",
        size="64x64",
        response_format="url",
        extra_body=FEW,
    )
    assert made.data is not None
    url = made.data[0].url
    assert url is not None
    assert url.startswith(service.url)
    answer = httpx2.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)


def test_mask_mode_none_remakes_what_is_transparent_too(client: openai.OpenAI) -> None:
    image = tiny.picture(64, 64).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))

    def edited(**extra: str) -> np.ndarray:
        few = {key: str(value) for key, value in FEW.items()} | {"strength": "1", **extra}
        made = client.images.edit(model="tiny-sd", image=file_of(image), prompt="a hat", extra_body=few)
        assert made.data is not None
        return np.array(picture_of(made.data[0].b64_json))

    right = np.array(image.convert("RGB"))[:, 32:]
    assert (edited()[:, 32:] == right).all()
    assert (edited(mask_mode="none")[:, 32:] != right).any()
    mask = file_of(Image.new("L", (64, 64), 255), "mask.png")
    with pytest.raises(openai.BadRequestError, match="mask_mode is none, but there is a mask"):
        client.images.edit(
            model="tiny-sd", image=file_of(image), mask=mask, prompt="a", extra_body={"mask_mode": "none"}
        )
