"""The safety checker of a checkpoint's folder: it reports, and what happens to a flagged picture is the caller's."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors.open import open_weights
from enlarger.errors import CheckpointError
from enlarger.nn.safety_checker import SafetyCheckerNetwork
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import read_json
from enlarger.tasks.auxiliary.vision import ImagePreprocessor, read_preprocessor, require_transformers
from enlarger.tasks.latent_diffusion.latent_diffusion import in_float32

FOLDER = "safety_checker"
DEFAULT_PREPROCESSOR = ImagePreprocessor(
    224, Image.Resampling.BICUBIC, (224, 224), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)


@dataclass(frozen=True, eq=False)
class SafetyChecker:
    """CLIP's image model and the concepts, as `StableDiffusionSafetyChecker` holds them. It runs in float32."""

    network: nn.Module
    preprocessor: ImagePreprocessor
    runtime: Runtime = Runtime()

    @staticmethod
    def from_folder(
        path: str | Path, dtype: torch.dtype | None = None, runtime: Runtime = Runtime(), variant: str | None = None
    ) -> "SafetyChecker":
        """Of a checkpoint; `dtype` is what the weights are kept in. Raises Unsupported without transformers."""
        with require_transformers("safety", "leave the checker out"):
            from transformers import CLIPConfig, CLIPVisionModel

        folder = Path(path) / FOLDER
        config_json = read_json(folder / "config.json")
        if config_json.get("model_type") != "clip":
            raise CheckpointError(f"{folder}: holds a {config_json.get('model_type')}, expected a clip; leave it out")
        config: Any = CLIPConfig.from_dict(config_json)

        def build_network() -> nn.Module:
            vision: Any = CLIPVisionModel(config.vision_config)
            embeddings = vision.embeddings
            embeddings.position_ids = torch.arange(embeddings.num_positions, device="cpu")[None]  # in no file
            return SafetyCheckerNetwork(vision, config.vision_config.hidden_size, config.projection_dim)

        network = load_module(build_network, open_weights(folder, "model", variant), map_checker_key, dtype)
        return SafetyChecker(network, read_preprocessor(Path(path), DEFAULT_PREPROCESSOR), runtime)

    def __call__(self, pictures: Tensor) -> tuple[bool, ...]:
        """Whether each of (B, 3, H, W) pictures in -1..1 shows what the checker looks for."""
        inputs = self.preprocessor(pictures)
        with self.runtime.hold(self.network) as network, torch.inference_mode(), in_float32(network):
            return tuple(network(inputs.to(self.runtime.device)).tolist())


def map_checker_key(name: str) -> str | None:
    """The name that our module has for a weight: once `vision_model.`, which older files say twice; no positions."""
    doubled_prefix = "vision_model.vision_model."
    return None if name.endswith("position_ids") else name.replace(doubled_prefix, "vision_model.", 1)


def missing_checker_note(path: str | Path) -> str | None:
    """The line that says why pictures of this checkpoint are not checked; None where they can be."""
    if not (Path(path) / FOLDER).is_dir():
        return f"not checked for unsafe content: {path} has no {FOLDER}"
    if find_spec("transformers") is None:
        return "not checked for unsafe content: the checker needs transformers; install enlarger[safety]"
    return None
