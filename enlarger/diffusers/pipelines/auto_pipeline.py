"""Pipelines chosen by the class that model_index.json names: `DiffusionPipeline` and `AutoPipelineFor...`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from enlarger.checkpoint.components import MODEL_INDEX_NAME
from enlarger.diffusers.call.arguments import MissingFile
from enlarger.diffusers.pipelines.latent_upscale import StableDiffusionLatentUpscalePipeline
from enlarger.diffusers.pipelines.pipeline_utils import Pipeline
from enlarger.diffusers.pipelines.stable_diffusion import StableDiffusionPipeline
from enlarger.diffusers.pipelines.stable_diffusion_depth2img import StableDiffusionDepth2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from enlarger.diffusers.pipelines.stable_diffusion_upscale import StableDiffusionUpscalePipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl_inpaint import StableDiffusionXLInpaintPipeline
from enlarger.errors import Unsupported
from enlarger.strict_json import read_json

PIPELINE_FAMILIES: tuple[dict[str, type[Pipeline]], ...] = (
    {
        "Text2Image": StableDiffusionPipeline,
        "Image2Image": StableDiffusionImg2ImgPipeline,
        "Inpainting": StableDiffusionInpaintPipeline,
    },
    {
        "Text2Image": StableDiffusionXLPipeline,
        "Image2Image": StableDiffusionXLImg2ImgPipeline,
        "Inpainting": StableDiffusionXLInpaintPipeline,
    },
)
OTHER_PIPELINES = (
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionUpscalePipeline,
)
PIPELINE_CLASSES: Mapping[str, type[Pipeline]] = {
    kind.__name__: kind
    for kind in (*OTHER_PIPELINES, *(kind for family in PIPELINE_FAMILIES for kind in family.values()))
}


def class_of(path: str | Path) -> type[Pipeline]:
    """The class that a folder's index names."""
    class_name = _index_class_name(path)
    if class_name not in PIPELINE_CLASSES:
        raise Unsupported(f"{path}: holds a {class_name}; the pipelines here are {', '.join(PIPELINE_CLASSES)}")
    return PIPELINE_CLASSES[class_name]


class _AutoPipeline:
    """A task that each family does by a class of its own."""

    TASK: ClassVar[str]
    config_name = MODEL_INDEX_NAME

    def __init__(self, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        raise MissingFile(f"{name} is made by {name}.from_pretrained(FOLDER) or {name}.from_pipe(PIPELINE)")

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | Path, **options: Any) -> Pipeline:
        """The folder's family doing this task; options are those of `Pipeline.from_pretrained`."""
        pipeline_class = cls._pipeline_class(_index_class_name(pretrained_model_or_path), str(pretrained_model_or_path))
        return pipeline_class.from_pretrained(pretrained_model_or_path, **options)

    @classmethod
    def from_pipe(cls, pipeline: Pipeline, **components: Any) -> Pipeline:
        """Another pipeline's parts doing this task; `parts` replaces some."""
        return cls._pipeline_class(type(pipeline).__name__, "the given pipeline").from_pipe(pipeline, **components)

    @classmethod
    def _pipeline_class(cls, class_name: str, label: str) -> type[Pipeline]:
        for family in PIPELINE_FAMILIES:
            if any(member.__name__ == class_name for member in family.values()):
                return family[cls.TASK]
        known = ", ".join(member.__name__ for family in PIPELINE_FAMILIES for member in family.values())
        raise Unsupported(f"{label}: is a {class_name}, expected one of {known}; read it with DiffusionPipeline")


class AutoPipelineForText2Image(_AutoPipeline):
    """Text to pictures."""

    TASK: ClassVar[str] = "Text2Image"


class AutoPipelineForImage2Image(_AutoPipeline):
    """Pictures to pictures."""

    TASK: ClassVar[str] = "Image2Image"


class AutoPipelineForInpainting(_AutoPipeline):
    """Pictures repainted under a mask."""

    TASK: ClassVar[str] = "Inpainting"


def _index_class_name(path: str | Path) -> str:
    """The class that a folder's index names."""
    if not (Path(path) / MODEL_INDEX_NAME).is_file():
        raise MissingFile(
            f"{path}: no folder with a {MODEL_INDEX_NAME}, and nothing is downloaded here; give a local folder"
        )
    return str(read_json(Path(path) / MODEL_INDEX_NAME).get("_class_name"))
