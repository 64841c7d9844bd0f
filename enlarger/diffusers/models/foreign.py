"""Parts of diffusers and transformers that have no class here, as our tasks call them."""

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from enlarger.diffusers.models.modules import AutoencoderTiny
from enlarger.nn.autoencoder import AutoencoderConfig, Posterior
from enlarger.tasks.auxiliary.depth_estimator import DEFAULT_PREPROCESSOR, DepthEstimator
from enlarger.tasks.auxiliary.safety_checker import FOLDER, SafetyChecker
from enlarger.tasks.auxiliary.vision import preprocessor_from_config

log = logging.getLogger(__name__)
Part = TypeVar("Part", DepthEstimator, SafetyChecker)
PEERS = ("diffusers", "transformers")


def is_foreign(part: object) -> bool:
    """Whether a part is an object of diffusers or transformers."""
    return type(part).__module__.split(".")[0] in PEERS


class OtherAutoencoder(nn.Module):
    """An autoencoder with diffusers' `encode` and `decode`, called as our tasks call `AutoencoderKL`.

    TAESD's latents are exact: nothing is drawn. A consistency decoder draws from torch's own generator.
    """

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part, stated = part, part.config
        widths = stated.get("block_out_channels") or stated["encoder_block_out_channels"]
        channels = (1,) * len(widths)  # it is never tiled here
        self.config = AutoencoderConfig(channels, 1, stated["latent_channels"], stated["scaling_factor"], False)

    @property
    def encoder(self) -> Any:
        """What an engine would be given: the part, which runs whole."""
        return self.part

    @property
    def decoder(self) -> Any:
        return self.part

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent along each axis."""
        return 2 ** (len(self.config.channels) - 1)

    def encode(self, image: Tensor) -> Posterior:
        """The latents' distribution of pictures (B, 3, H, W) in -1..1, scaled."""
        found, scale = self.part.encode(image), self.config.scaling_factor
        spread = getattr(found, "latent_dist", None)
        if spread is None:
            return Posterior(found.latents * scale, found.latents * 0, is_exact=True)
        return Posterior(spread.mean * scale, spread.std * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures (B, 3, H, W), about -1..1, of scaled latents."""
        return self.part.decode(latents / self.config.scaling_factor).sample


def is_other_autoencoder(part: object) -> bool:
    """Whether a part is an autoencoder that `OtherAutoencoder` can call."""
    known = is_foreign(part) and all(hasattr(part, name) for name in ("encode", "decode", "config"))
    return isinstance(part, AutoencoderTiny) or (known and "latent_channels" in getattr(part, "config", ()))


def read_vision_part(part: Any) -> Any:
    """A depth estimator or a safety checker of theirs as ours; anything else as it is."""
    match type(part).__name__:
        case "DPTForDepthEstimation":
            return DepthEstimator(part.eval(), DEFAULT_PREPROCESSOR)
        case "StableDiffusionSafetyChecker":
            with tempfile.TemporaryDirectory() as folder:
                part.save_pretrained(Path(folder) / FOLDER)
                return SafetyChecker.from_folder(folder)
        case _:
            return part


def read_image_encoder(folder: Path, stated: object, variant: str | None = None) -> Any:
    """The encoder of pictures that a folder's index names, which is kept and saved; None where there is none."""
    known = [["transformers", name] for name in ("CLIPVisionModelWithProjection", "CLIPVisionModel")]
    if stated not in known or not (folder / "image_encoder").is_dir():
        return None
    try:
        import transformers
    except ImportError:
        log.warning("%s: its image_encoder is left out; install transformers to keep it", folder)
        return None
    kind: Any = getattr(transformers, known[known.index(cast("list[str]", stated))][1])
    return kind.from_pretrained(folder / "image_encoder", variant=variant)


def with_extractor(part: Part, extractor: Any) -> Part:
    """A depth estimator or safety checker that prepares pictures as an image processor of transformers does."""
    if extractor is None:
        return part
    return replace(
        part, preprocessor=preprocessor_from_config(json.loads(extractor.to_json_string()), part.preprocessor)
    )
