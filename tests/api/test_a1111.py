"""AUTOMATIC1111's API: a client of its own against a service with tiny models, and what is refused by its name."""

import base64
import io
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.middleware.api_keys import keys_from_headers
from enlarger.service.middleware.asgi import RequestHead
from enlarger.service.problems import ProblemError
from enlarger.service.routes.a1111.models import plain_name
from enlarger.service.routes.a1111.payloads import (
    ExtraBatch,
    ExtraSingle,
    ImageToImage,
    PngInfo,
    TextToImage,
    check_options,
    read_payload,
)
from enlarger.service.routes.a1111.samplers import sampler_options
from enlarger.service.routes.a1111.translate import (
    in_their_names,
    parse_extras,
    parse_image_to_image,
    parse_text_to_image,
)
from enlarger.service.routes.request_body import RequestBody
from enlarger.service.settings import Bounds
from enlarger.service.uploads.a1111_body import parse_a1111
from enlarger.service.uploads.messages import ParseRequest
from tests.support import tiny
from tests.support.model_folders import web_ui_folder
from tests.support.service import Served, running

webuiapi = pytest.importorskip("webuiapi", reason="the client is in the test extra")
SIZE: dict[str, Any] = {"width": 64, "height": 64, "seed": 7}
HIRES: dict[str, Any] = {"enable_hr": True, "hr_upscaler": "enlarger"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running(models=(), models_folder=str(web_ui_folder()), a1111=True) as service:
        yield service


@pytest.fixture
def api(served: Served) -> Any:
    return webuiapi.WebUIApi(baseurl=f"{served.url}/sdapi/v1", steps=2)


def pixels(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB")).astype(int)


def test_what_there_is(api: Any) -> None:
    assert api.util_get_model_names() == ["painter", "tiny"]
    assert {"Euler a", "DPM++ 2M", "DDIM", "UniPC"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras", "exponential"} <= set(api.util_get_scheduler_names())
    assert [each["name"] for each in api.get_upscalers()] == ["None", "bundled"]
    assert [each["name"] for each in api.get_loras()] == ["bend", "wave"]
    assert [each["name"] for each in api.get_prompt_styles()] == ["oil", "warm", "bent"]
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_hypernetworks() == api.get_face_restorers() == api.get_latent_upscale_modes() == []
    assert "is not served here" in api.get_memory()["error"]["message"]
    api.util_wait_for_ready(0.1)


def test_text_to_image(api: Any) -> None:
    asked = {"prompt": "a lighthouse <lora:bend:0.8>", "negative_prompt": "fog", "styles": ["warm"], **SIZE}
    made = api.txt2img(**asked, batch_size=2)
    assert [image.size for image in made.images] == [(64, 64)] * 2
    assert made.info["all_seeds"] == [7, 8]
    assert "Sampler: Euler a, " in made.info["infotexts"][0]
    assert made.parameters["cfg_scale"] == 7.0
    assert made.images[0].tobytes() == api.txt2img(**asked).image.tobytes()
    assert made.images[0].tobytes() != api.txt2img(**(asked | {"prompt": "a lighthouse"})).image.tobytes()
    assert api.png_info(made.image).info.startswith("a lighthouse <lora:bend:0.8>\nNegative prompt: fog\n")
    large = api.txt2img(prompt="a", enable_hr=True, hr_upscaler="enlarger", hr_scale=2, denoising_strength=0.6, **SIZE)
    assert large.image.size == (128, 128)
    assert api.txt2img(prompt="a", send_images=False, **SIZE).images == []


def test_image_to_image_and_its_mask(api: Any) -> None:
    picture, mask = tiny.picture(64, 64), Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 47, 47), fill=255)
    inside = np.asarray(mask) > 0
    asked = {"images": [picture], "prompt": "a boat", "denoising_strength": 0.9, **SIZE}
    assert api.img2img(**asked).image.size == (64, 64)
    for invert in (0, 1):
        made = api.img2img(
            **asked, mask_image=mask, inpainting_mask_invert=invert, inpainting_fill=1, inpaint_full_res=False
        )
        change = np.abs(pixels(made.image) - pixels(picture)).max(axis=2)
        assert change[inside if invert else ~inside].max() == 0
        assert change[~inside if invert else inside].max() > 8
    wide = api.img2img(images=[picture], prompt="a", resize_mode=1, seed=1, width=96, height=64, denoising_strength=0.9)
    assert wide.image.size == (96, 64)


def test_extras(api: Any) -> None:
    pictures = [tiny.picture(32, 24), tiny.picture(20, 30)]
    one = api.extra_single_image(pictures[0], upscaler_1="bundled", upscaling_resize=2)
    assert one.image.size == (64, 48)
    several = api.extra_batch_images(pictures, upscaler_1="bundled", upscaling_resize=1.5)
    assert [image.size for image in several.images] == [(48, 36), (30, 45)]
    exact = {"resize_mode": 1, "upscaling_resize_w": 60, "upscaling_resize_h": 60}
    covering = api.extra_single_image(pictures[0], upscaler_1="bundled", upscaling_crop=False, **exact)
    assert covering.image.size == (80, 60)
    with pytest.raises(RuntimeError, match="expected one of bundled"):
        api.extra_single_image(pictures[0])


def test_options_choose_the_checkpoint(api: Any) -> None:
    api.set_options({"sd_model_checkpoint": "painter.safetensors [0123456789]", "CLIP_stop_at_last_layers": 2})
    assert (api.util_get_current_model(), api.get_options()["CLIP_stop_at_last_layers"]) == ("painter", 2)
    with pytest.raises(RuntimeError, match=r"the model painter \(sd-inpaint\) cannot generate"):
        api.txt2img(prompt="a", **SIZE)
    made = api.txt2img(prompt="a", override_settings={"sd_model_checkpoint": "tiny"}, **SIZE)
    assert (made.info["sd_model_name"], made.info["clip_skip"]) == ("tiny", 2)
    api.util_set_model("TINY")
    api.set_options({"CLIP_stop_at_last_layers": 1})
    assert api.util_get_current_model() == "tiny"
    assert "cannot be set" in api.set_options({"eta_noise_seed_delta": 31337})["error"]["message"]


def test_progress_and_interrupt(api: Any) -> None:
    ends: list[Any] = []

    def run() -> None:
        try:
            ends.append(api.txt2img(prompt="a", steps=150, width=384, height=384, seed=1))
        except RuntimeError as error:
            ends.append(error.args[0])

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 60
    while (found := api.get_progress())["state"]["sampling_step"] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (0 < found["progress"] < 1, found["state"]["sampling_steps"], found["state"]["job_count"]) == (True, 150, 1)
    assert api.interrupt() == {}
    thread.join(60)
    assert ends == [499]
    assert api.get_progress()["state"]["job_count"] == 0


def test_bare_base64_is_a_picture_and_an_address_is_not(served: Served) -> None:
    import requests

    out = io.BytesIO()
    tiny.picture(16, 16).save(out, "PNG")
    url = f"{served.url}/sdapi/v1/extra-single-image"
    asked = {"image": base64.b64encode(out.getvalue()).decode(), "upscaler_1": "bundled"}
    assert requests.post(url, json=asked, timeout=60).status_code == 200
    for bad, text in (("http://a/b.png", "image is an address, expected base64"), ("%%%", "is not base64")):
        reply = requests.post(url, json=asked | {"image": bad}, timeout=60)
        assert reply.status_code == 400
        assert text in reply.json()["error"]["message"]


def test_a_batch_is_not_repeated_by_a_key_and_waits_for_room(served: Served) -> None:
    import requests

    out = io.BytesIO()
    tiny.picture(16, 16).save(out, "PNG")
    picture = {"name": "a", "data": base64.b64encode(out.getvalue()).decode()}
    url, asked = f"{served.url}/sdapi/v1/extra-batch-images", {"upscaler_1": "bundled", "imageList": [picture] * 3}
    reply = requests.post(url, json=asked, headers={"Idempotency-Key": "k"}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["message"]) == (
        400, "found Idempotency-Key with 3 pictures; send one picture, or no key",
    )  # fmt: skip
    with running(a1111=True, queue=1) as small:
        reply = requests.post(f"{small.url}/sdapi/v1/extra-batch-images", json=asked, timeout=60)
    assert (reply.status_code, len(reply.json()["images"])) == (200, 3)


def payload(kind: Any, **values: Any) -> Any:
    return read_payload(kind, RequestBody(values, {}, False))


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (TextToImage, {"restore_faces": True}, "restore_faces is True, which is not supported here; leave it out"),
        (TextToImage, {"tiling": True}, "tiling is True"),
        (TextToImage, {"subseed_strength": 0.5}, "subseed_strength is 0.5"),
        (TextToImage, {"s_churn": 1.0}, "s_churn is 1.0"),
        (TextToImage, {"refiner_checkpoint": "xl"}, "refiner_checkpoint is 'xl'"),
        (TextToImage, {"hr_resize_x": 640}, "hr_resize_x is 640"),
        (TextToImage, {"script_name": "x/y/z plot"}, "script_name is 'x/y/z plot'"),
        (TextToImage, {"lowvram": True}, "the field 'lowvram' is not known here; leave it out"),
        (TextToImage, {"alwayson_scripts": {"ControlNet": {"args": [{}]}}}, "the script 'ControlNet' is not here"),
        (TextToImage, {"init_images": []}, "the field 'init_images' is not known here"),
        (ImageToImage, {"initial_noise_multiplier": 1.1}, "initial_noise_multiplier is 1.1"),
        (ExtraSingle, {"gfpgan_visibility": 0.4}, "gfpgan_visibility is 0.4"),
        (ExtraSingle, {"extras_upscaler_2_visibility": 1}, "extras_upscaler_2_visibility is 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_refused(kind: Any, values: dict[str, Any], text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        payload(kind, **values)
    assert text in caught.value.problem.message
    assert "\n" not in caught.value.problem.message


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"eta": math.inf}, "eta holds inf, expected a finite number"),
        ({"comments": {"a": [math.inf]}}, "comments holds inf, expected a finite number"),
        ({"styles": ["\ud800"]}, "'styles' holds half a surrogate pair, U+D800, expected text"),
        ({"alwayson_scripts": {"\ud800": {}}}, "'alwayson_scripts' holds half a surrogate pair"),
        ({"override_settings": {"sd_vae": "\ud800"}}, "'override_settings' holds half a surrogate pair"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_answer_can_say_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        payload(TextToImage, **values)
    assert (caught.value.problem.status, caught.value.problem.param) == (400, next(iter(values)))
    assert text in caught.value.problem.message


@pytest.mark.parametrize(
    ("kind", "field", "text"),
    [
        (TextToImage, "init_images", "found a picture in init_images, which is not taken here; expected no picture"),
        (ImageToImage, "imageList", "found a picture in imageList, which is not taken here; expected init_images and"),
        (ExtraSingle, "imageList", "expected image"),
        (ExtraBatch, "image", "expected imageList"),
        (PngInfo, "mask", "expected image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_without_effect_are_refused(kind: Any, field: str, text: str) -> None:
    with pytest.raises(ProblemError, match=text):
        read_payload(kind, RequestBody({}, {field: (Path("a"),)}, False))


def test_pictures_are_files_of_their_fields(tmp_path: Path) -> None:
    (tmp_path / "body").write_text('{"init_images": ["AAAA"], "mask": "AAAA", "imageList": [{"data": "AAAA"}]}')
    source = str(tmp_path / "body")
    found = parse_a1111(ParseRequest("json", source, source, "", 9, 999, 99, 99, 5))
    assert [file.name for file in found.files] == ["init_images", "imageList", "mask"]


def test_what_asks_for_nothing_is_taken() -> None:
    body = payload(
        TextToImage,
        restore_faces=False,
        s_churn=0,
        script_args=[],
        subseed=99,
        seed_resize_from_w=0,
        alwayson_scripts={"ADetailer": {"args": [False]}, "ControlNet": {"args": []}},
        hr_prompt=None,
    )
    assert body.steps == 50


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"width": 4}, "width x height is 4x512, expected both sides between 8 and 8192"),
        ({"steps": 9999}, "steps is 9999, expected"),
        ({"n_iter": 99}, "batch_size x n_iter is 99, expected"),
        ({"cfg_scale": 1e9}, "cfg_scale is 1000000000.0, expected"),
        ({"enable_hr": True, "hr_upscaler": "Latent"}, "hr_upscaler is 'Latent', expected enlarger"),
        ({"sampler_name": "Restart"}, "no solver is called 'Restart'"),
        ({"sampler_name": "DDIM", "eta": 0.5}, "eta is 0.5, expected 0 or 1 for DDIM"),
        ({"sampler_name": "Euler a", "eta": 0}, "eta is 0, expected 1 for Euler a"),
        ({"sampler_name": "DPM++ 2M SDE", "eta": 0.5}, "eta is 0.5, expected 1 for DPM++ 2M SDE"),
        ({"eta": 0.5}, "eta is 0.5 without sampler_name; name a sampler, or leave eta out"),
        ({**HIRES, "hr_second_pass_steps": 9999}, "hr_second_pass_steps is 9999, expected 1 to"),
        ({**HIRES, "hr_scale": 17}, "hr_scale is 17, expected more than 1, up to 16"),
        ({**HIRES, "hr_scale": 1}, "hr_scale is 1, expected more than 1"),
        ({"denoising_strength": 2}, "denoising_strength is 2, expected less than or equal to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_named_as_there(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ProblemError) as caught, in_their_names():
        parse_text_to_image(payload(TextToImage, prompt="a", **values), {}, Bounds())
    assert text in caught.value.problem.message


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"resize_mode": 2}, "resize_mode is 2, expected 0 or 1"),
        ({"resize_mode": 1, "upscaling_resize_h": 0}, "upscaling_resize_h is 0, expected 1 to 65536"),
        ({"resize_mode": 1}, "upscaling_resize_w x upscaling_resize_h is 512x512, but the picture of 64x48 has"),
        ({"resize_mode": 1, "upscaling_resize_w": 9, "upscaling_resize_h": 9, "upscaling_crop": False}, "0.188 times"),
        ({"upscaling_resize": 99}, "upscaling_resize is 99"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_sizes_of_extras_are_named_as_there(values: dict[str, Any], text: str) -> None:
    model = ModelState("bundled", "bundled", ("upscale",), ())
    with pytest.raises(ProblemError) as caught, in_their_names():
        parse_extras(payload(ExtraSingle, **values), model, (64, 48), Bounds())
    assert text in caught.value.problem.message


def test_wrong_masks_and_layers_are_named_as_there() -> None:
    for name, value in (("mask_blur", -1), ("inpaint_full_res_padding", -1), ("denoising_strength", 2)):
        with pytest.raises(ProblemError, match=f"{name} is {value}, expected"):
            payload(ImageToImage, **{name: value})
    with pytest.raises(ProblemError, match="CLIP_stop_at_last_layers is 99, expected 1 to 12") as caught:
        check_options({"CLIP_stop_at_last_layers": 99}, "override_settings")
    assert caught.value.problem.param == "override_settings"


def test_masks_are_translated() -> None:
    body = payload(ImageToImage, inpainting_fill=2, mask_blur=8, inpaint_full_res_padding=16)
    options = parse_image_to_image(body, {}, Bounds(), has_mask=True).options
    assert {name: options[name] for name in ("fill", "feather", "crop", "strength")} == {
        "fill": "noise", "feather": 8, "crop": 16, "strength": 0.75,
    }  # fmt: skip
    for values in ({"inpainting_fill": 3}, {"resize_mode": 3}):
        with pytest.raises(ProblemError, match="expected 0, 1 or 2"):
            parse_image_to_image(payload(ImageToImage, **values), {}, Bounds(), has_mask=True)


@pytest.mark.parametrize(
    ("name", "scheduler", "eta", "expected"),
    [
        ("Euler a", "automatic", 1.0, ("euler_ancestral", None)),
        ("DPM++ 2M Karras", None, None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Automatic", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "exponential", None, ("dpmpp_2m", "exponential")),
        ("DPM++ 2M SDE", None, None, ("dpmpp_2m_sde", "exponential")),
        ("DDIM", None, 1.0, ("ddpm", None)),
        ("DDIM", None, 0, ("ddim", None)),
        (None, None, None, (None, None)),
    ],
    ids=str,
)
def test_samplers(name: str | None, scheduler: str | None, eta: float | None, expected: tuple[Any, Any]) -> None:
    found = sampler_options(payload(TextToImage, sampler_name=name, scheduler=scheduler, eta=eta))
    assert (found["solver"], found["spacing"]) == expected


def test_options_that_can_be_set() -> None:
    assert check_options({"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 2}) == {"CLIP_stop_at_last_layers": 2}
    with pytest.raises(ProblemError, match="the option 'sd_vae' cannot be set"):
        check_options({"sd_vae": "other.pt"})


@pytest.mark.parametrize(
    "title", ["Dream.safetensors [abcdef0123]", "dream", "DREAM.ckpt"], ids=["title", "name", "file"]
)
def test_titles_are_names(title: str) -> None:
    assert plain_name(title) == "dream"


def test_a_password_is_a_key_there_and_nowhere_else() -> None:
    credentials = base64.b64encode(b"someone:enl_key").decode()
    heads = [
        RequestHead("GET", path, "http", {"authorization": (f"Basic {credentials}",)})
        for path in ("/sdapi/v1/options", "/v1/models")
    ]
    assert [keys_from_headers(head) for head in heads] == [["enl_key"], []]


def test_without_the_flag_there_is_none() -> None:
    from enlarger.service.app import create_app
    from enlarger.service.settings import Settings

    paths = {getattr(route, "path", "") for route in create_app(Settings()).routes}
    assert not any(path.startswith("/sdapi") for path in paths)
