"""The safety checker decides as diffusers' does, and prepares pictures as transformers' CLIPImageProcessor does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from enlarger.image.picture import Picture, to_pil
from enlarger.nn.safety_checker import NUM_CONCEPTS, NUM_SPECIAL_CONCEPTS
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.auxiliary.safety_checker import DEFAULT_PREPROCESSOR, SafetyChecker
from enlarger.tasks.auxiliary.vision import preprocessor_from_config
from tests.support.close import assert_close
from tests.support.official import config_of
from tests.support.tiny_vision import clip_processor, pictures, safety_network, save_beside

ATOL = 1e-5
SIZES = [(28, 28), (40, 104), (150, 91), (33, 47)]


def pixels(batch: torch.Tensor, processor: Any) -> torch.Tensor:
    return processor([to_pil(Picture(each)) for each in batch], return_tensors="pt").pixel_values


def theirs(network: Any, inputs: torch.Tensor) -> tuple[bool, ...]:
    _, flagged = network(inputs, [np.zeros((1, 1, 3))] * len(inputs))
    return tuple(flagged)


def embeddings(network: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Unit vectors (B, 16)."""
    with torch.inference_mode():
        return torch.nn.functional.normalize(network.visual_projection(network.vision_model(inputs)[1]))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "changed",
    [
        {}, {"resample": 2}, {"do_center_crop": False, "size": {"height": 28, "width": 28}}, {"do_normalize": False},
        {"crop_size": {"height": 20, "width": 24}}, {"size": {"shortest_edge": 37}},
    ],
    ids=str,
)  # fmt: skip
def test_preprocessing_equals_transformers(changed: dict[str, Any], height: int, width: int) -> None:
    processor, batch = clip_processor(**changed), pictures(2, height, width)
    found = preprocessor_from_config(json.loads(processor.to_json_string()), DEFAULT_PREPROCESSOR)(batch)
    assert_close(found, pixels(batch, processor), ATOL)


def test_the_official_preprocessing() -> None:
    config = config_of("stable-diffusion-v1-4/feature_extractor")
    found, batch = preprocessor_from_config(config, DEFAULT_PREPROCESSOR), pictures(1, 150, 231)
    assert found == DEFAULT_PREPROCESSOR == preprocessor_from_config({}, DEFAULT_PREPROCESSOR)
    assert_close(found(batch), pixels(batch, clip_processor(**config)), ATOL)


def planted(place: Path, batch: torch.Tensor, *, above: float, special: float = -1.0) -> tuple[Path, Any]:
    """A checkpoint where concept 4 is what the first picture shows, its cosine `above` the threshold; and likewise
    the second special concept."""
    network = safety_network()
    seen = embeddings(network, pixels(batch, clip_processor()))
    network.concept_embeds[4] = 3 * seen[0]
    network.concept_embeds_weights[4] = 1 - above
    network.special_care_embeds[1] = 0.2 * seen[0]
    network.special_care_embeds_weights[1] = 1 - special
    return save_beside(place, "safety_checker", network, clip_processor()), network


@pytest.mark.parametrize(
    ("above", "special", "flagged"),
    [
        (0.002, -1.0, True), (-0.002, -1.0, False), (0.0007, -1.0, True), (0.0003, -1.0, False),
        (-0.008, 0.002, True), (-0.008, -0.002, False), (-0.012, 0.002, False), (-0.0093, 0.0007, True),
        (-0.0097, 0.0007, False), (-0.008, 0.0003, False),
    ],
)  # fmt: skip
def test_decisions_equal_diffusers(tmp_path: Path, above: float, special: float, flagged: bool) -> None:
    batch = pictures(3, 40, 56)
    folder, network = planted(tmp_path, batch, above=above, special=special)
    expected = theirs(network, pixels(batch, clip_processor()))
    assert SafetyChecker.from_folder(folder)(batch) == expected and expected[0] == flagged


@pytest.mark.parametrize("seed", range(8))
def test_decisions_equal_diffusers_for_thresholds_all_around(tmp_path: Path, seed: int) -> None:
    """Thresholds near the cosines, so that half the pictures are flagged, some of them by special care alone."""
    batch, network, generator = pictures(12, 32, 32), safety_network(), np.random.default_rng(seed)
    inputs = pixels(batch, clip_processor())
    seen = embeddings(network, inputs)
    for name, count in (("concept", NUM_CONCEPTS), ("special_care", NUM_SPECIAL_CONCEPTS)):
        unit = torch.nn.functional.normalize(getattr(network, f"{name}_embeds"))
        highest = (seen @ unit.mT).amax(0)
        around = torch.from_numpy(generator.uniform(-0.004, 0.02, count)).float()
        getattr(network, f"{name}_embeds_weights").copy_(highest + around)
    folder = save_beside(tmp_path, "safety_checker", network, clip_processor())
    expected = theirs(network, inputs)
    assert SafetyChecker.from_folder(folder)(batch) == expected and len(set(expected)) == 2


def test_older_files_read_alike(tmp_path: Path) -> None:
    """The official files say `vision_model.` twice and hold the positions' numbers."""
    batch = pictures(2, 40, 56)
    folder, _ = planted(tmp_path, batch, above=0.002)
    file = folder / "safety_checker" / "model.safetensors"
    tensors = load_file(file)
    old = {
        name if name.startswith("vision_model.vision_model.") else name.replace("vision_model.", "vision_model." * 2): t
        for name, t in tensors.items()
    }
    before = SafetyChecker.from_folder(folder)
    save_file(old | {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}, file)
    after = SafetyChecker.from_folder(folder)
    assert after(batch) == before(batch) == (True, False)
    assert {n: p.tolist() for n, p in after.network.named_parameters()} == {
        n: p.tolist() for n, p in before.network.named_parameters()
    }


def test_precision_and_offload_change_no_decision(tmp_path: Path) -> None:
    batch = pictures(3, 40, 56)
    folder, _ = planted(tmp_path, batch, above=0.004)
    half = SafetyChecker.from_folder(folder, torch.float16)
    assert half(batch) == (True, False, False) and next(half.network.parameters()).dtype == torch.float16
    for offload in ("model", "sequential"):
        assert SafetyChecker.from_folder(folder, runtime=Runtime(offload=offload))(batch) == (True, False, False)
    assert tuple(SafetyChecker.from_folder(folder)(one[None])[0] for one in batch) == (True, False, False)


def test_the_official_config_builds_the_official_keys() -> None:
    """396 weights: the vision model's 391, the projection, two tables of concepts and their thresholds."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPVisionModel

    from enlarger.nn.safety_checker import SafetyCheckerNetwork

    config = CLIPConfig(
        projection_dim=768,
        vision_config={
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14, "image_size": 224,
        },
    )  # fmt: skip
    with torch.device("meta"):
        ours, other = (
            SafetyCheckerNetwork(CLIPVisionModel(config.vision_config), 1024, 768),
            StableDiffusionSafetyChecker(config),
        )
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in other.state_dict().items()}
    assert len(ours.state_dict()) == 396
