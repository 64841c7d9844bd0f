"""What a training is asked for: one frozen value for the library and the command line. Without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from enlarger.requests import MAX_SEED, check_limits, option
from enlarger.train.recipe import Recipe

Task = Literal["text-to-image", "lora", "inpainting", "depth", "upscaler-x4", "upscaler-x2"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
TrainingPrecision = Literal["float32", "bfloat16"]
LoraLayout = Literal["diffusers", "kohya"]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what diffusers' trainers change


@dataclass(frozen=True)
class LossOptions:
    """How latents are noised, and what the network predicts of them and is told."""

    prediction: Prediction | None = option(
        None,
        "what the network learns to predict; the base's if not said",
        choices=("epsilon", "v_prediction", "sample"),
    )
    offset_noise: float = option(0.0, "share of noise that is alike all over a channel", least=0, most=1)
    snr_gamma: float | None = option(None, "bound of min-SNR weighting, often 5", least=1e-6, most=1e6)
    zero_terminal_snr: bool = option(False, "make the last time pure noise; needs v_prediction or sample")
    text_dropout: float = option(0.1, "share of captions left out, for guidance", least=0, most=1)
    max_noise_level: float | None = option(
        None,
        "most noise on an upscaler's input: a step (x4, 350) or a level (x2, 0.6)",
        least=0,
        most=999,
    )

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class DataSettings:
    """How pictures are cut and named, see `train.data.DataOptions`."""

    buckets: bool = option(True, "cut each picture to the size nearest to its shape; else all to squares")
    center_crop: bool = option(False, "cut from the middle; else anywhere")
    random_flip: bool = option(False, "mirror half of the pictures")
    caption: str | None = option(None, "caption of pictures that have none")
    caption_column: str = option("text", "where metadata, or the JSON of a shard, has the captions")


@dataclass(frozen=True)
class SampleOptions:
    """Pictures made in the midst of a training: of these prompts, or of the first batch's captions."""

    sample_every: int | None = option(None, "steps between rows of sample pictures", least=1, most=10**9)
    sample_prompts: tuple[str, ...] = ()
    sample_steps: int = option(20, "denoising steps of samples", least=1, most=1000)
    sample_guidance: float = option(4.0, "guidance scale of samples", least=0, most=100)

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class LoraSettings:
    """Rank, alpha and the layers of a LoRA, by what their names end with."""

    rank: int = option(16, "rank of the changes", least=1, most=4096)
    alpha: float | None = option(None, "alpha / rank scales the changes; the rank if not said", least=1e-6, most=1e6)
    targets: tuple[str, ...] = ATTENTION

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True)
class TrainOptions:
    """A training: which task, from which base, on which pictures, for how long, and where the result goes.

    `batch` pictures per process make a step, or `accumulate` times as many. The rate warms up, then is constant.
    `estimator` is a folder of a depth model, where the base has no depth_estimator; `tracker` a name of accelerate's.
    `cache` is a folder where the latents of pictures and the features of captions are kept.
    """

    task: Task
    model: str | Path
    data: str | Path
    out: Path
    steps: int = option(1000, "steps", least=1, most=10**9)
    batch: int = option(4, "pictures of a step, for each process", least=1, most=65536)
    rate: float = option(1e-4, "learning rate", least=0, most=1)
    resolution: int = option(512, "side of squares; others have as many pixels", least=8, most=8192)
    seed: int = option(0, "seed of all draws", least=0, most=MAX_SEED)
    resume: bool = option(False, "go on from the state in OUT.work, if there is one")
    warmup: int = option(500, "steps over which the rate rises", least=0, most=10**9)
    accumulate: int = option(1, "batches whose gradients make one step", least=1, most=65536)
    average: float | None = option(None, "decay of averaged weights, which are then written", least=0, most=0.999999)
    weight_decay: float = option(0.01, "AdamW's weight decay", least=0, most=1)
    device: str = "auto"
    precision: TrainingPrecision = option("float32", "number format of the networks", choices=("float32", "bfloat16"))
    save_every: float = option(300.0, "seconds between states to go on from", least=0, most=1e9)
    loss: LossOptions = LossOptions()
    data_settings: DataSettings = DataSettings()
    samples: SampleOptions = SampleOptions()
    lora: LoraSettings = LoraSettings()
    lora_layout: LoraLayout = option("diffusers", "names in a LoRA's file", choices=("diffusers", "kohya"))
    estimator: Path | None = None
    cache: Path | None = None
    tracker: str | None = None

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def work(self) -> Path:
        """Where state, log and samples lie while it runs."""
        return self.out.with_name(f"{self.out.name}.work")

    @property
    def recipe(self) -> Recipe:
        """How the loop learns."""
        return Recipe(
            self.steps,
            self.rate,
            hold=1.0,
            average=self.average,
            warmup=self.warmup,
            seed=self.seed,
            accumulate=self.accumulate,
            beta2=0.999,
            weight_decay=self.weight_decay,
        )

    def fixed_settings(self, processes: int) -> dict[str, str]:
        """What a training that goes on must share with the one that began."""
        names = [item.name for item in fields(self) if item.name not in FREE]
        shared = {name: str(getattr(self, name)) for name in names}
        return shared | {"pictures of a step": str(self.batch * self.accumulate * processes)}


WITHOUT: Mapping[Task, frozenset[str]] = {  # fields of LossOptions that mean nothing to a task
    "text-to-image": frozenset({"max_noise_level"}),
    "lora": frozenset({"prediction", "zero_terminal_snr", "max_noise_level"}),
    "inpainting": frozenset({"max_noise_level"}),
    "depth": frozenset({"max_noise_level"}),
    "upscaler-x4": frozenset(),
    "upscaler-x2": frozenset({"prediction", "offset_noise", "snr_gamma", "zero_terminal_snr"}),
}
FREE = {
    "model", "data", "out", "steps", "rate", "warmup", "batch", "accumulate", "resume", "device", "save_every",
    "samples", "tracker", "estimator", "lora_layout", "cache",
}  # fmt: skip
"""Options that may differ where a training goes on."""
