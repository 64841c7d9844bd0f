"""THE table of the kinds of models: what each is called, what it does, how it is loaded and told from the others.

A new kind is a row here and the file of its task, nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from enlarger.checkpoint.single_file.key_mapping_unet import diffusers_unet_levels
from enlarger.checkpoint.single_file.key_rules import Shape
from enlarger.errors import Unsupported
from enlarger.nn.unet import UNetConfig


@dataclass(frozen=True)
class TaskSpec:
    """How a kind of model does one of the verbs of `enlarger`.

    `factory`, "module:name", makes the task of the loaded model; without one the model itself is the task.
    """

    defaults: str  # what None stands for in its request: a name of `requests.DEFAULTS`
    factory: str | None = None
    is_batched: bool = False  # requests that are alike may share a batch


@dataclass(frozen=True)
class ModelKind:
    """What one kind of model is.

    `loader`, "module:function", is imported when such a model is loaded: (PipelineComponents, Runtime, name) -> model.
    The first of `tasks` is the one it was trained for.
    """

    label: str
    purpose: str  # what it is for, in words
    trained_for: str  # the same in one word
    service_kind: str  # what the service calls it; several kinds may share the name
    loader: str
    tasks: Mapping[str, TaskSpec]
    layout: str = ""  # of its original single file, a name of `LAYOUTS`; "": it comes as a folder only
    prediction_type: str | None = None  # what its UNet predicts; None where two kinds of weights look alike
    latent_space: Literal["sd", "sdxl", "x4"] | None = None  # whose latents it denoises; None: its own
    modelspec: str = ""  # what the "modelspec" that many programs read calls its single file
    pipeline_class: str | None = None  # in model_index.json; None: its UNet tells what it is
    unused_options: tuple[str, ...] = ()  # of its requests
    dependent_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Options that change nothing while another one is None or 0."""
    one_step: bool = False  # `steps` of its requests is 1, if anything
    one_answer: str = ""  # the note of a `count` above 1, where seeds change nothing; "": they do

    @property
    def primary_task(self) -> str:
        """The one that it was trained for."""
        return next(iter(self.tasks))

    @property
    def description(self) -> str:
        """What it is and what it is for, for messages."""
        return f"{self.label} ({self.purpose})"


SD_LOADER = "enlarger.tasks.loading.stable_diffusion:build_stable_diffusion"
REFINE, INPAINT = "enlarger.tasks.image_to_image:Refiner", "enlarger.tasks.inpaint:Inpainter"
SCORES = ("score", "negative_score")  # aesthetic scores, which only the SDXL refiner takes


def _text_to_image(
    label: str, layout: str, prediction_type: str | None, modelspec: str, *, xl: bool = False
) -> ModelKind:
    suffix = "/xl" if xl else ""
    generate, refine = f"generate{suffix}", f"refine{suffix}"
    return ModelKind(
        label=label,
        purpose="text to image, enlarger.generate and enlarger.refine",
        trained_for="text-to-image",
        service_kind="sdxl" if xl else "sd",
        loader=SD_LOADER,
        tasks={
            "generate": TaskSpec(generate, "enlarger.tasks.text_to_image:Generator", is_batched=True),
            "refine": TaskSpec(refine, REFINE),
            "inpaint": TaskSpec("inpaint", INPAINT),
        },
        layout=layout,
        prediction_type=prediction_type,
        latent_space="sdxl" if xl else "sd",
        modelspec=modelspec,
        unused_options=SCORES,
    )


def _inpainting(label: str, layout: str, modelspec: str, *, xl: bool = False) -> ModelKind:
    return ModelKind(
        label=label,
        purpose="inpainting, enlarger.inpaint",
        trained_for="inpaint",
        service_kind="sdxl-inpaint" if xl else "sd-inpaint",
        loader=SD_LOADER,
        tasks={"inpaint": TaskSpec("inpaint", INPAINT)},
        layout=layout,
        prediction_type="epsilon",
        latent_space="sdxl" if xl else "sd",
        modelspec=modelspec,
    )


KINDS: dict[str, ModelKind] = {
    "sd1": _text_to_image("Stable Diffusion 1", "sd1", "epsilon", "stable-diffusion-v1"),
    "sd1_inpainting": _inpainting("Stable Diffusion 1 inpainting", "sd1", "stable-diffusion-v1-inpainting"),
    "sd2": _text_to_image("Stable Diffusion 2", "sd2", None, "stable-diffusion-v2"),
    "sd2_inpainting": _inpainting("Stable Diffusion 2 inpainting", "sd2", "stable-diffusion-v2-inpainting"),
    "sd2_depth": ModelKind(
        label="Stable Diffusion 2 depth",
        purpose="depth to image, enlarger.depth",
        trained_for="depth",
        service_kind="depth",
        loader=SD_LOADER,
        tasks={"depth": TaskSpec("depth", "enlarger.tasks.depth:with_estimator")},
        layout="sd2",
        prediction_type="epsilon",
        latent_space="sd",
        modelspec="stable-diffusion-v2-depth",
        unused_options=SCORES,
    ),
    "x2": ModelKind(
        label="the x2 latent upscaler",
        purpose="upscaling by 2, enlarger.upscale",
        trained_for="x2 upscaling",
        service_kind="x2",
        loader="enlarger.tasks.upscale.latent_x2:load",
        tasks={"upscale": TaskSpec("upscale/x2", is_batched=True)},
        layout="x2",
        prediction_type="original_sample",
        latent_space="sd",
        modelspec="stable-diffusion-x2-latent-upscaler",
        pipeline_class="StableDiffusionLatentUpscalePipeline",
        unused_options=("detail", "restore"),
    ),
    "x4": ModelKind(
        label="the x4 upscaler",
        purpose="upscaling by 4, enlarger.upscale",
        trained_for="x4 upscaling",
        service_kind="x4",
        loader="enlarger.tasks.upscale.pixel_x4:load",
        tasks={"upscale": TaskSpec("upscale/x4")},
        layout="sd2",
        prediction_type="v_prediction",
        latent_space="x4",
        modelspec="stable-diffusion-x4-upscaler",
        pipeline_class="StableDiffusionUpscalePipeline",
        unused_options=("detail", "restore", "profile"),
    ),
    "sdxl": _text_to_image("SDXL base", "sdxl", "epsilon", "stable-diffusion-xl-v1-base", xl=True),
    "sdxl_inpainting": _inpainting("SDXL inpainting", "sdxl", "stable-diffusion-xl-v1-inpainting", xl=True),
    "sdxl_refiner": ModelKind(
        label="the SDXL refiner",
        purpose="refining what SDXL base made, enlarger.refine",
        trained_for="refiner",
        service_kind="sdxl-refiner",
        loader=SD_LOADER,
        tasks={"refine": TaskSpec("refine/xl", REFINE)},
        layout="sdxl_refiner",
        prediction_type="epsilon",
        latent_space="sdxl",
        modelspec="stable-diffusion-xl-v1-refiner",
    ),
    "pixel": ModelKind(
        label="an upscaler network of one call (ESRGAN, SwinIR, SPAN ...)",
        purpose="upscaling, enlarger.upscale",
        trained_for="upscaling",
        service_kind="pixel",
        loader="enlarger.tasks.upscale.pixel_network:load",
        tasks={"upscale": TaskSpec("upscale/pixel")},
        pipeline_class="PixelNetwork",
        unused_options=(
            "prompt",
            "negative",
            "steps",
            "guidance",
            "solver",
            "spacing",
            "noise_level",
            "profile",
            "detail",
            "restore",
            "long_prompt",
            "tile",
            "memory",
        ),
        one_answer="count is {count}, but the network has one answer for a picture: one was made",
    ),
    "bundled": ModelKind(
        label="the bundled model",
        purpose="upscaling by 2, enlarger.upscale",
        trained_for="x2 upscaling",
        service_kind="bundled",
        loader="enlarger.tasks.upscale.bundled:load",
        tasks={"upscale": TaskSpec("upscale/bundled", is_batched=True)},
        pipeline_class="CompactUpscale",
        one_step=True,
        unused_options=(
            "prompt",
            "negative",
            "steps",
            "guidance",
            "solver",
            "spacing",
            "noise_level",
            "profile",
            "long_prompt",
            "tile",
        ),
        one_answer="count is {count}, but the bundled model has one answer for a picture: one was made",
    ),
}
FAMILIES: Mapping[str, ModelKind] = {name: kind for name, kind in KINDS.items() if kind.layout}
"""Those that exist as original single files."""
FAMILY_BY_CONTEXT_CHANNELS = {768: "sd1", 1024: "sd2"}  # width of the text features
FAMILY_BY_VECTOR_CHANNELS = {2816: "sdxl", 2560: "sdxl_refiner"}  # width of the pooled text with the sizes


def describe_family(family: str) -> str:
    """A family and its task, for messages."""
    return FAMILIES[family].description


def detect_unet_family(shapes: Mapping[str, Shape], text_family: str | None = None) -> str:
    """The family of a UNet under our names. `text_family` is what its text encoder says, for widths of no official
    model. Raises Unsupported for one that belongs to none."""
    if "time_proj.weight" in shapes:
        return "x2"
    if "class_embedding.weight" in shapes:
        return "x4"
    base_family, in_channels = _base_family(shapes, text_family), _dim(shapes.get("conv_in.weight"), 1)
    variants = _variants(latent_channels=4)
    family = base_family + variants.get(in_channels, "?")
    if family not in FAMILIES:
        raise Unsupported(
            f"the UNet is one of {FAMILIES[base_family].label} with {in_channels} input channels"
            f"{', as InstructPix2Pix has them' if in_channels == 8 else ''}; supported: "
            + ", ".join(
                f"{n} ({FAMILIES[base_family + name].label})"
                for n, name in variants.items()
                if base_family + name in FAMILIES
            )
        )
    return family


def kind_of_pipeline_class(name: str) -> ModelKind | None:
    """The kind whose folders name this class in model_index.json; None where a folder's UNet tells its kind."""
    return next((kind for kind in KINDS.values() if kind.pipeline_class == name), None)


def kind_of_unet(unet: UNetConfig, latent_channels: int, pooled_channels: int | None) -> ModelKind:
    """The kind of a folder's model, by its UNet and the pooled width of its last text encoder.

    Raises Unsupported for a UNet that no kind has.
    """
    variant = _variants(latent_channels).get(unet.in_channels, "?")
    if unet.time_id_channels is None:
        base_family = "sd2" if unet.linear_projection or variant == "_depth" else "sd1"
    else:
        base_family = "sdxl_refiner" if not variant and takes_aesthetic_score(unet, pooled_channels) else "sdxl"
    if base_family + variant not in KINDS:
        raise Unsupported(f"its UNet takes {unet.in_channels} channels, which no known task gives it")
    return KINDS[base_family + variant]


def takes_aesthetic_score(unet: UNetConfig, pooled_channels: int | None) -> bool:
    """Whether a UNet is conditioned on an aesthetic score: its vector holds the pooled text and 5 numbers, not 6."""
    scalars = unet.time_id_channels
    return scalars is not None and unet.vector_channels == (pooled_channels or 0) + 5 * scalars


def _variants(latent_channels: int) -> dict[int, str]:
    """What the channels of a UNet's input say: latents alone, with a mask and masked latents, or with a depth map."""
    return {latent_channels: "", 2 * latent_channels + 1: "_inpainting", latent_channels + 1: "_depth"}


def _base_family(shapes: Mapping[str, Shape], text_family: str | None) -> str:
    context = next((_dim(shape, 1) for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    vector_shape = shapes.get("add_embedding.linear_1.weight")
    if vector_shape is None:
        linear_projection = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
        return FAMILY_BY_CONTEXT_CHANNELS.get(context) or text_family or ("sd2" if linear_projection else "sd1")
    if context in FAMILY_BY_CONTEXT_CHANNELS:
        raise Unsupported("the UNet is an unCLIP model's: it is conditioned on pictures; supported: on texts alone.")
    levels = diffusers_unet_levels(shapes)
    guess = (
        "sdxl" if levels and levels[-1].has_attention else "sdxl_refiner"
    )  # the refiner's lowest level has no attention
    return FAMILY_BY_VECTOR_CHANNELS.get(_dim(vector_shape, 1)) or text_family or guess


def _dim(shape: Shape | None, axis: int) -> int:
    """A side of a shape, 0 where it has none."""
    return shape[axis] if shape is not None and len(shape) > axis else 0
