"""The networks that look at pictures for FID, KID and CLIP score, read from where the user has them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from enlarger.checkpoint.config.network_configs import clip_projection_config, clip_vision_config
from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors.open import open_checkpoint, open_weights
from enlarger.errors import CheckpointError, EnlargerError
from enlarger.image.picture import read_picture
from enlarger.nn.clip_text import ClipText
from enlarger.nn.clip_vision import ClipVision
from enlarger.nn.inception import Inception
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import Json, is_object, read_json
from enlarger.tasks.auxiliary.safety_checker import DEFAULT_PREPROCESSOR
from enlarger.tasks.auxiliary.vision import PREPROCESSOR_FILE, ImagePreprocessor, preprocessor_from_config
from enlarger.text.tokenize import Tokenizer

BATCH = 16  # pictures that a network looks at together
Pictures = Iterable[Path | Image.Image]


@dataclass(frozen=True, eq=False)
class InceptionFeatures:
    """Pictures of any size to the features that FID and KID compare, in float32."""

    network: nn.Module
    runtime: Runtime = Runtime()

    def __call__(self, pictures: Pictures, seen: Callable[[int], None] = lambda count: None) -> Tensor:
        """(N, 2048) on the CPU; `seen` is told how many pictures are done."""
        features = list[Tensor]()
        with self.runtime.hold(self.network) as network, torch.inference_mode():
            for picture in pictures:
                pixels = read_picture(picture).colour[None]
                features.append(network(pixels.to(self.runtime.device)).cpu())
                seen(len(features))
        return torch.cat(features)


@dataclass(frozen=True, eq=False)
class ClipScorer:
    """CLIP's two encoders: how well pictures fit texts."""

    text: ClipText
    vision: ClipVision
    tokenizer: Tokenizer
    preprocessor: ImagePreprocessor
    runtime: Runtime = Runtime()

    def __call__(
        self, pictures: Pictures, texts: Sequence[str], seen: Callable[[int], None] = lambda count: None
    ) -> Tensor:
        """The cosine of each picture's embedding with its text's, (N,); of texts over 75 tokens the beginning."""
        found, remaining, scores = iter(pictures), list(texts), list[Tensor]()
        while batch := list(islice(found, BATCH)):
            told, remaining = remaining[: len(batch)], remaining[len(batch) :]
            images = torch.cat([self.preprocessor(read_picture(one).colour[None]) for one in batch])
            scores.append((self.embed_images(images) * self.embed_texts(told)).sum(1))
            seen(len(texts) - len(remaining))
        return torch.cat(scores)

    def embed_images(self, images: Tensor) -> Tensor:
        """Preprocessed pictures (B, 3, S, S) to unit vectors (B, D)."""
        with self.runtime.hold(self.vision) as vision, torch.inference_mode():
            return F.normalize(vision(images.to(self.runtime.device))).cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        with self.runtime.hold(self.text) as text, torch.inference_mode():
            embeds = text(self.tokenizer(texts).ids.to(self.runtime.device)).text_embeds
            assert embeds is not None
            return F.normalize(embeds).cpu()


def read_inception(path: Path, runtime: Runtime = Runtime(), *, allow_pickle: bool = False) -> InceptionFeatures:
    """pytorch-fid's weights (`pt_inception-2015-12-05`), as they are or as safetensors.

    Raises CheckpointError for another file, and for a pickle without leave to open it.
    """
    weights = open_checkpoint(path, allow_pickle=allow_pickle)
    return InceptionFeatures(load_module(Inception, weights, _inception_key, torch.float32), runtime)


def _inception_key(name: str) -> str | None:
    """Our name of a weight: the classifier is not needed, nor are counts of training."""
    return None if name.startswith(("fc.", "AuxLogits.")) or name.endswith("num_batches_tracked") else name


def read_clip(folder: Path, runtime: Runtime = Runtime()) -> ClipScorer:
    """A whole CLIP in transformers' layout: config, weights, tokenizer, preprocessing. Raises CheckpointError."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise CheckpointError(f"{folder}: holds a {config.get('model_type')}, expected a clip; give CLIP's own folder")
    try:
        text_config = clip_projection_config(_part(config, "text_config"))
        vision_config = clip_vision_config(_part(config, "vision_config"))
        preprocessor = preprocessor_from_config(read_json(folder / PREPROCESSOR_FILE), DEFAULT_PREPROCESSOR)
    except EnlargerError as error:
        raise type(error)(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    weights = open_weights(folder, "model")
    text = load_module(lambda: ClipText(text_config), weights, _text_key, torch.float32)
    vision = load_module(lambda: ClipVision(vision_config), weights, _vision_key, torch.float32)
    assert isinstance(text, ClipText)
    assert isinstance(vision, ClipVision)
    return ClipScorer(text, vision, Tokenizer.from_folder(folder), preprocessor, runtime)


def _part(config: Json, name: str) -> Json:
    """The config of one encoder; the width that both share is stated beside them."""
    part = config.get(name)
    return (part if is_object(part) else {}) | {"projection_dim": config.get("projection_dim", 512)}


def _text_key(name: str) -> str | None:
    is_text = name.startswith(("text_model.", "text_projection.")) and not name.endswith("position_ids")
    return name.removeprefix("text_model.") if is_text else None


def _vision_key(name: str) -> str | None:
    is_vision = name.startswith(("vision_model.", "visual_projection."))
    return name if is_vision and not name.endswith("position_ids") else None
