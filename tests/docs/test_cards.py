"""The code samples of the model cards and of the pipeline's reference run with nothing but the import changed.

The samples name models as the hub does: here these are folders with tiny weights where the sample runs. What a machine
without a GPU cannot do is changed too: "cuda" becomes "cpu", and torch.compile only traces.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support import tiny, tiny_xl

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

INPAINTING = """
from diffusers import StableDiffusionInpaintPipeline
pipe = StableDiffusionInpaintPipeline.from_pretrained(
    "stable-diffusion-2-inpainting",
    revision="fp16",
    torch_dtype=torch.float16,
)
prompt = "Face of a yellow cat, high resolution, sitting on a park bench"
#image and mask_image should be PIL images.
#The mask structure is white for inpainting and black for keeping as is
image = pipe(prompt=prompt, image=image, mask_image=mask_image).images[0]
image.save("./yellow_cat_on_park_bench.png")
"""
REFINER = """
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from diffusers.utils import load_image

pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-refiner-1.0", torch_dtype=torch.float16, variant="fp16", use_safetensors=True
)
pipe = pipe.to("cuda")
url = "https://huggingface.co/datasets/patrickvonplaten/images/resolve/main/aa_xl/000000009.png"

init_image = load_image(url).convert("RGB")
prompt = "a photo of an astronaut riding a horse on mars"
image = pipe(prompt, image=init_image).images
"""
COMPILED = 'pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)\n'
OFFLOADED = ('pipe = pipe.to("cuda")', 'pipe.enable_model_cpu_offload(device="cpu")')
LATENT_UPSCALER = """
from diffusers import StableDiffusionLatentUpscalePipeline, StableDiffusionPipeline
import torch
pipeline = StableDiffusionPipeline.from_pretrained(
    "CompVis/stable-diffusion-v1-4", torch_dtype=torch.float16
)
pipeline.to("cuda")
model_id = "stabilityai/sd-x2-latent-upscaler"
upscaler = StableDiffusionLatentUpscalePipeline.from_pretrained(model_id, torch_dtype=torch.float16)
upscaler.to("cuda")
prompt = "a photo of an astronaut high resolution, unreal engine, ultra realistic"
generator = torch.manual_seed(33)
low_res_latents = pipeline(prompt, generator=generator, output_type="latent").images
with torch.no_grad():
    image = pipeline.decode_latents(low_res_latents)
image = pipeline.numpy_to_pil(image)[0]
image.save("../images/a1.png")
upscaled_image = upscaler(
    prompt=prompt,
    image=low_res_latents,
    num_inference_steps=20,
    guidance_scale=0,
    generator=generator,
).images[0]
upscaled_image.save("../images/a2.png")
"""
SLICING = """
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(
    "runwayml/stable-diffusion-v1-5",
    torch_dtype=torch.float16,
    use_safetensors=True,
)
prompt = "a photo of an astronaut riding a horse on mars"
pipe.enable_attention_slicing()
image = pipe(prompt).images[0]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with the models under the names that the samples have for them."""
    here = tmp_path / "here"
    folders = {
        "stable-diffusion-2-inpainting": tiny.inpaint_folder(),
        "stabilityai/stable-diffusion-xl-refiner-1.0": halved(tiny_xl.refiner_folder(), tmp_path / "refiner"),
        "stabilityai/sd-x2-latent-upscaler": tiny.x2_folder(),
        "CompVis/stable-diffusion-v1-4": tiny.sd1_folder(),
        "runwayml/stable-diffusion-v1-5": tiny.sd1_folder(),
    }
    for name, folder in folders.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).symlink_to(folder)
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(here)
    return here


def halved(folder: Path, place: Path) -> Path:
    """The model with its weights in half precision under the names of the variant "fp16"."""
    from enlarger.checkpoint.folder.load import read_folder
    from enlarger.checkpoint.folder.save import save_folder

    return save_folder(read_folder(folder), place, torch.float16, variant="fp16")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server on this machine that gives the files of a folder."""

    class NoProgress(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(NoProgress, directory=os.fspath(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(code: str, **names: Any) -> dict[str, Any]:
    code = code.replace("from diffusers", "from enlarger.diffusers").replace('"cuda"', '"cpu"')
    found: dict[str, Any] = {"torch": torch, **names}
    exec(compile(code, "sample", "exec"), found)
    return found


def test_the_inpainting_card(place: Path) -> None:
    mask = Image.new("L", (64, 96))
    mask.paste(255, (16, 16, 48, 64))
    run(INPAINTING, image=tiny.picture(), mask_image=mask)
    with Image.open(place / "yellow_cat_on_park_bench.png") as made:
        assert made.size == (64, 64)


@pytest.mark.parametrize("changed", [("", ""), ("prompt =", f"{COMPILED}prompt ="), OFFLOADED], ids=str)
def test_the_refiner_card(place: Path, changed: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, mode, fullgraph: compiled(net, backend="eager", fullgraph=True))
    tiny.picture(64, 64).save(place / "000000009.png")
    with served(place) as address:
        code = REFINER.replace("https://huggingface.co/datasets/patrickvonplaten/images/resolve/main/aa_xl", address)
        found = run(code.replace(*changed) if changed[0] else code)
    assert [image.size for image in found["image"]] == [(64, 64)]


def test_the_references_first_sample(place: Path) -> None:
    run(LATENT_UPSCALER)
    sizes: list[tuple[int, int]] = []
    for name in ("a1.png", "a2.png"):
        with Image.open(place.parent / "images" / name) as made:
            sizes.append(made.size)
    assert sizes[1] == (2 * sizes[0][0], 2 * sizes[0][1])


def test_the_references_second_sample(place: Path) -> None:
    with pytest.warns(UserWarning, match="attention slicing changes nothing here"):
        assert run(SLICING)["image"].size == (64, 64)
