"""More of what users of other programs have reported about their files; listed in docs/compatibility.md."""

import io
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torch import Tensor

from enlarger.checkpoint.adapters.lora import apply_loras, read_lora
from enlarger.checkpoint.adapters.textual_inversion import add_textual_inversion, read_textual_inversion
from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.single_file.component_override import read_vae_file
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.checkpoint.single_file.save import original_state_dict
from enlarger.errors import CheckpointError, InputError
from enlarger.image.picture import read_picture
from tests.support import command, tiny
from tests.support.command import Fake, photo, size
from tests.support.random_weights import normal
from tests.support.single import tiny_single
from tests.support.tiny_models import same_weights

fake, call = pytest.fixture(command.fake), pytest.fixture(command.call)
one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
NETWORKS = ("unet", "vae", "text_encoder")
Weights = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def sd1() -> PipelineComponents:
    return tiny_single("sd1")


@pytest.fixture(scope="module")
def original(sd1: PipelineComponents) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in original_state_dict(sd1).items()}


def written(path: Path, tensors: Weights) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


def is_same(found: PipelineComponents, expected: PipelineComponents) -> bool:
    return all(same_weights(found.components[name], expected.components[name]) for name in NETWORKS)


@pytest.mark.parametrize("cut", [3, 100, -5000])
def test_files_cut_short_say_so(original: Weights, tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(save(dict(original))[:cut])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: [^\n]*(cut short|ends|bytes)[^\n]*$"):
        read_single_file(tmp_path / "a.safetensors")


def test_bytes_after_the_tensors(original: Weights, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save(dict(original)) + bytes(4096))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: [^\n]+$"):
        read_single_file(tmp_path / "a.safetensors")


def test_a_pickle_under_the_name_of_safetensors(sd1: PipelineComponents, original: Weights, tmp_path: Path) -> None:
    torch.save(dict(original), tmp_path / "a.safetensors")
    for allow_pickle, words in (
        (False, "allow_pickle"),
        (True, "a pickle under the name of safetensors; .*name it .ckpt"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_single_file(tmp_path / "a.safetensors", allow_pickle=allow_pickle)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.ckpt")
    assert is_same(read_single_file(tmp_path / "a.ckpt", allow_pickle=True), sd1)


SCHEDULE = {
    name: torch.zeros(1000) for name in ("betas", "alphas_cumprod", "sqrt_alphas_cumprod", "posterior_variance")
}


@pytest.mark.parametrize(
    "form", ["bare with its schedule", "state_dict twice", "model_state_dict", "names before CLIP's text_model"]
)
def test_old_forms_of_single_files(sd1: PipelineComponents, original: Weights, tmp_path: Path, form: str) -> None:
    weights: dict[str, Any] = dict(original)
    if form == "bare with its schedule":
        weights |= SCHEDULE
    elif form == "model_state_dict":
        weights = {"model_state_dict": weights, "epoch": 3}
    elif form == "state_dict twice":
        weights = {"state_dict": weights | {"state_dict": {}}}
    else:
        weights = {name.replace("transformer.text_model.", "transformer."): each for name, each in weights.items()}
    torch.save(weights, tmp_path / "a.ckpt")
    assert is_same(read_single_file(tmp_path / "a.ckpt", allow_pickle=True), sd1)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder_with_its_trainers_loss(
    sd1: PipelineComponents, original: Weights, tmp_path: Path, prefix: str
) -> None:
    names = {
        name: name.removeprefix("first_stage_model.") for name in original if name.startswith("first_stage_model.")
    }
    weights = {prefix + short: original[name] for name, short in names.items()}
    weights |= {
        f"{prefix}loss.logvar": torch.zeros(()),
        f"{prefix}loss.discriminator.main.0.weight": normal(4, 3, 4, 4),
    }
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "kl-f8-anime2.ckpt")
    found = read_vae_file(tmp_path / "kl-f8-anime2.ckpt", allow_pickle=True)
    assert same_weights(found, sd1.components["vae"])


def kohya(layer: str, into: int = 32, out: int = 32) -> dict[str, Tensor]:
    down, up = normal(2, into), normal(out, 2)
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(2.0)}


def test_a_lora_of_the_text_projection(tmp_path: Path) -> None:
    xl = tiny_single("sdxl")
    networks = {name: xl.components[name] for name in ("unet", "text_encoder", "text_encoder_2")}
    encoder = networks["text_encoder_2"]
    out, into = encoder.state_dict()["text_projection.weight"].shape
    lora = read_lora(written(tmp_path / "a.safetensors", kohya("lora_te2_text_projection", into, out)), networks)
    changed = apply_loras(encoder, [(lora.components["text_encoder_2"], 1.0)]).state_dict()
    assert [name for name, each in encoder.state_dict().items() if not each.equal(changed[name])] == [
        "text_projection.weight"
    ]


def test_a_locon_with_cores_at_both_ends(sd1: PipelineComponents, tmp_path: Path) -> None:
    unet = sd1.components["unet"]
    tensors: dict[str, Tensor] = {}
    for name in ("conv_in", "conv_out"):
        out, into, height, width = unet.state_dict()[f"{name}.weight"].shape
        tensors[f"lora_unet_{name}.lora_down.weight"] = normal(2, into, 1, 1)
        tensors[f"lora_unet_{name}.lora_mid.weight"] = normal(2, 2, height, width)
        tensors[f"lora_unet_{name}.lora_up.weight"] = normal(out, 2, 1, 1)
    lora = read_lora(written(tmp_path / "a.safetensors", tensors), {"unet": unet})
    changed = apply_loras(unet, [(lora.components["unet"], 1.0)]).state_dict()
    delta = changed["conv_in.weight"] - unet.state_dict()["conv_in.weight"]
    down, mid, up = (tensors[f"lora_unet_conv_in.lora_{part}.weight"] for part in ("down", "mid", "up"))
    assert delta.allclose(torch.einsum("oa,abhw,bi->oihw", up[..., 0, 0], mid, down[..., 0, 0]), atol=1e-5)
    assert not changed["conv_out.weight"].equal(unet.state_dict()["conv_out.weight"])


def test_a_lora_of_flux(sd1: PipelineComponents, tmp_path: Path) -> None:
    names = ("lora_transformer_single_transformer_blocks_0_attn_to_q", "lora_unet_double_blocks_0_img_attn_proj")
    tensors = kohya(names[0]) | kohya(names[1])
    networks = {name: sd1.components[name] for name in ("unet", "text_encoder")}
    with pytest.raises(CheckpointError, match=r"^[^\n]+$"):
        read_lora(written(tmp_path / "a.safetensors", tensors), networks)


def test_inversions_of_other_widths_and_shapes(sd1: PipelineComponents, tmp_path: Path) -> None:
    torch.save(
        {"string_to_param": {"*": normal(1, 1280)}, "string_to_token": {"*": torch.tensor(265)}}, tmp_path / "a.pt"
    )
    parts = sd1.components["tokenizer"], sd1.components["text_encoder"]
    with pytest.raises(InputError, match="are 1280 wide"):
        add_textual_inversion(*parts, read_textual_inversion(tmp_path / "a.pt", allow_pickle=True))
    flat = written(tmp_path / "b.safetensors", {"<sonic>": normal(768)})
    assert {name: tuple(each.shape) for name, each in read_textual_inversion(flat).vectors.items()}
    (vectors,) = read_textual_inversion(flat).vectors.values()
    assert vectors.shape == (1, 768)


NAMES = ["zdjęcia/Képek (másolat).png", "#Dia 2/Colores RGB.png", "è.jpg", "名前 写真.png", "🖼 a.png", "a, b & c'd.png",
         unicodedata.normalize("NFD", "é/ü.png")]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[f"name {i}" for i in range(len(NAMES))])
def test_names_as_people_have_them(call: Any, name: str) -> None:
    photo(name)
    made = Path(name).with_name(f"{Path(name).stem}-x2.png")
    assert call("upscale", name)[0] == 0 and size(made) == (24, 18)
    folder = Path(name).parent
    assert call("upscale", folder, "-o", "out")[0] == 0 and size(Path("out", made.name)) == (24, 18)


def test_a_folder_as_people_have_it(call: Any, fake: Fake) -> None:
    for name in ("f/IMG_6003.JPG", "f/IMAGE2.JPEG", "f/IMAGE3.WEBP", "f/a.png", "elsewhere/linked.png"):
        photo(name)
    photo("f/a.jpg"), Path("f/163048286.txt").write_text("a caption")
    Path("f/link.png").symlink_to(Path("elsewhere/linked.png").absolute())
    status, _, err = call("upscale", "f", "-o", "out", "--format", "jpg")
    names = ["IMAGE2-x2.jpg", "IMAGE3-x2.jpg", "IMG_6003-x2.jpg", "a.jpg-x2.jpg", "a.png-x2.jpg", "link-x2.jpg"]
    assert (status, sorted(path.name for path in Path("out").iterdir())) == (0, sorted(names)), err
    assert "163048286.txt" in err and all(path.read_bytes()[:2] == b"\xff\xd8" for path in Path("out").iterdir())


def test_names_that_differ_in_case_alone_have_results_of_their_own(call: Any) -> None:
    photo("f/Photo.png"), photo("f/photo.jpg")
    assert call("upscale", "f", "-o", "out")[0] == 0
    names = [path.name.casefold() for path in Path("out").iterdir()]
    assert len(names) == len(set(names)) == 2


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("lost", ["cut", "gone"])
def test_a_second_picture_that_is_not_there(tmp_path: Path, lost: str) -> None:
    first, second = (Image.fromarray(np.full((16, 24, 3), level, np.uint8)) for level in (90, 200))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    begin = data.rfind(b"\xff\xd8")
    (tmp_path / "IMG_1.jpg").write_bytes(data[: begin if lost == "gone" else begin + 200])
    picture = read_picture(tmp_path / "IMG_1.jpg")
    assert (picture.width, picture.height) == (24, 16) and abs(float(picture.colour.mean()) * 127.5 + 127.5 - 90) < 1


def test_exif_that_is_none(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (8, 6), "red"), "JPEG")
    (tmp_path / "bad.jpeg").write_bytes(data[:2] + b"\xff\xe1\0\x10Exif\0\0http://n" + data[2:])
    assert read_picture(tmp_path / "bad.jpeg").width == 8


def test_a_jpeg_of_inks_as_photoshop_writes_it(tmp_path: Path) -> None:
    inks = Image.merge("CMYK", [Image.new("L", (8, 6), level) for level in (0, 255, 255, 0)])  # red
    data = encoded(inks, "JPEG", quality=95)
    assert b"Adobe" in data
    (tmp_path / "a.jpg").write_bytes(data)
    red, green, blue = (read_picture(tmp_path / "a.jpg").colour.mean((1, 2)) * 127.5 + 127.5).tolist()
    assert red > 200 and green < 60 and blue < 60
