"""Inception and CLIP as FID and CLIP score use them: shapes and sums of the papers, transformers' CLIP."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import CheckpointError
from enlarger.evaluate.feature_networks import InceptionFeatures, read_clip, read_inception
from enlarger.nn.inception import Inception
from tests.support.clip_files import small_tokenizer_folder
from tests.support.close import assert_close
from tests.support.pictures import texture
from tests.support.random_weights import randomise
from tests.support.tiny import picture
from tests.support.tiny_vision import clip_processor


def test_inception_has_the_shapes_of_the_paper() -> None:
    """Szegedy et al. 2015, table 1: 35 x 35 x 288, 17 x 17 x 768, 8 x 8 x 2048; and Keras' count of its weights."""
    network, shapes = randomise(Inception()).eval(), dict[str, tuple[int, ...]]()
    for name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"):
        layer = getattr(network, name)
        layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 80)).shape == (1, 2048)
    assert shapes == {
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7c": (2048, 8, 8),
    }
    convolutions = sum(p.numel() for p in network.parameters() if p.ndim == 4)
    channels = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bn.bias"))
    assert convolutions + channels == 21_768_352  # InceptionV3 without top: the trainable ones


CHAINS = {  # each block's branches: the convolutions in a row; "mean" and "max" pool before, "|" forks
    "A": ("1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "mean _pool"),
    "B": ("3x3", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "halve"),
    "C": ("1x1", "7x7_1 7x7_2 7x7_3", "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5", "mean _pool"),
    "D": ("3x3_1 3x3_2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4", "halve"),
    "E": ("1x1", "3x3_1 3x3_2a", "3x3_1 3x3_2b",
          "3x3dbl_1 3x3dbl_2 3x3dbl_3a", "3x3dbl_1 3x3dbl_2 3x3dbl_3b", "mean _pool"),
}  # fmt: skip
STRIDED = {"B": ("3x3", "3x3dbl_3"), "D": ("3x3_2", "7x7x3_4")}


def slow_inception(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """By names alone: a convolution keeps its size by padding, unless it strides or stands in the stem."""

    def conv(x: Tensor, name: str, stride: int = 1, *, pad: bool = True) -> Tensor:
        kernel = weights[f"{name}.conv.weight"]
        padding = tuple(side // 2 if pad and stride == 1 else 0 for side in kernel.shape[2:])
        x = F.conv2d(x, kernel, None, stride, padding)
        mean, var, scale, shift = (
            weights[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 0.001).sqrt() * scale + shift).relu()

    def block(x: Tensor, name: str, kind: str) -> Tensor:
        branches = []
        for chain in CHAINS[kind]:
            y = x
            for step in chain.split():
                if step == "halve":
                    y = F.max_pool2d(y, 3, 2)
                elif step == "mean":
                    ones = torch.ones_like(y[:, :1])
                    total = F.avg_pool2d(y, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)
                    y = F.max_pool2d(y, 3, 1, 1) if name == "Mixed_7c" else total
                else:
                    stride = 2 if step in STRIDED.get(kind, ()) else 1
                    y = conv(y, f"{name}.branch{step}", stride)
            branches.append(y)
        return torch.cat(branches, 1)

    x = F.interpolate(x, (299, 299), mode="bilinear")
    x = conv(conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3", pad=False)
    x = F.max_pool2d(conv(x, "Conv2d_2b_3x3"), 3, 2)
    x = F.max_pool2d(conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", pad=False), 3, 2)
    for name, kind in zip(
        ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"), "AAABCCCCDEE", strict=True
    ):
        x = block(x, f"Mixed_{name}", kind)
    return x.mean((2, 3))


def test_inception_is_the_network_that_its_names_say() -> None:
    network = randomise(Inception()).eval()
    weights = network.state_dict()
    for name, value in weights.items():
        if name.endswith("running_mean"):
            value.copy_(torch.linspace(-0.1, 0.1, len(value)))
        elif name.endswith("running_var"):
            value.copy_(torch.linspace(0.5, 1.5, len(value)))
        elif value.ndim == 4:
            value.normal_(generator=torch.Generator().manual_seed(len(name))).mul_((2 / value[0].numel()) ** 0.5)
    x = torch.from_numpy(texture(50, 40)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        found = InceptionFeatures(network)([picture(50, 40)])
        assert found.std() > 1e-3
        assert_close(found, slow_inception(weights, x), 1e-3 * float(found.abs().max()))


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read_inception(tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        read_inception(tmp_path / "a.pth")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shared | {"vocab_size": 64, "eos_token_id": 57, "bos_token_id": 56, "pad_token_id": 57}
    config = CLIPConfig(
        text_config=text, vision_config=shared | {"image_size": 28, "patch_size": 14}, projection_dim=16
    )
    place = small_tokenizer_folder(tmp_path_factory.mktemp("clip") / "clip")
    randomise(CLIPModel(config), 7).save_pretrained(place)
    clip_processor().save_pretrained(place)
    return place


def test_the_clip_score_is_the_cosine_of_transformers_embeddings(clip_folder: Path) -> None:
    from transformers import CLIPModel

    model, scorer = CLIPModel.from_pretrained(clip_folder), read_clip(clip_folder)
    pictures, texts = [picture(40, 64, seed=i) for i in range(3)], ["the cat", "a", "the " * 90]
    ids = scorer.tokenizer(texts).ids
    pixels = clip_processor()(pictures, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        out = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
    expected = (F.normalize(out.image_embeds) * F.normalize(out.text_embeds)).sum(1)
    assert_close(scorer(pictures, texts), expected, 1e-5)


def test_another_model_is_not_taken_for_clip(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="holds a bert, expected a clip"):
        read_clip(tmp_path)
