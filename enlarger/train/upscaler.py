"""Training a x2 upscaler like the bundled one: predictor, autoencoder, denoiser, then a folder to load."""

from pathlib import Path

from torch import nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.folder.save import save_folder
from enlarger.nn.compact import CompactAutoencoder, CompactAutoencoderConfig, Predictor, PredictorConfig
from enlarger.nn.compact_unet import CompactUNet, CompactUNetConfig
from enlarger.train.autoencoder import train_autoencoder
from enlarger.train.denoiser import train_denoiser
from enlarger.train.loop import TrainingConfig
from enlarger.train.photos import read_photos
from enlarger.train.predictor import train_predictor

CROP, BATCH = 128, 8  # pixels of the large picture, crops per step
TIME_FRACTIONS = {"predictor": 0.65, "autoencoder": 0.1, "denoiser": 0.25}  # of the time


def train_upscaler(photos: Path, out: Path, minutes: float, work: Path, seed: int = 0) -> None:
    """Train all three networks in `minutes` and write them to `out`; logs and states for resuming lie in `work`."""
    crops = read_photos(photos, CROP, seed)

    def training_config(stage: str, rate: float) -> TrainingConfig:
        return TrainingConfig(minutes * TIME_FRACTIONS[stage], rate, seed=seed)

    predictor = train_predictor(crops, PredictorConfig(), training_config("predictor", 8e-4), work, BATCH)
    autoencoder = train_autoencoder(
        crops, CompactAutoencoderConfig(), training_config("autoencoder", 5e-4), work, BATCH
    )
    unet = train_denoiser(
        crops, predictor, autoencoder, CompactUNetConfig(), training_config("denoiser", 5e-4), work, BATCH
    )
    save_upscaler(predictor, autoencoder, unet, out)


def save_upscaler(predictor: Predictor, autoencoder: CompactAutoencoder, unet: CompactUNet, out: Path) -> None:
    """Write the networks as a folder that `enlarger upscale --model` reads."""
    parts: dict[str, nn.Module] = {"predictor": predictor, "autoencoder": autoencoder, "unet": unet}
    index = {"_class_name": "CompactUpscale"} | {n: ["enlarger", type(m).__name__] for n, m in parts.items()}
    save_folder(PipelineComponents(out, index, parts), out)
