"""Pipelines chosen by the class that model_index.json names: `DiffusionPipeline` and `AutoPipelineFor...`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from enlarger.checkpoint.folder import INDEX
from enlarger.diffusers.latent_upscale import StableDiffusionLatentUpscalePipeline
from enlarger.diffusers.pipeline import Pipeline
from enlarger.diffusers.stable_diffusion import StableDiffusionPipeline
from enlarger.diffusers.stable_diffusion_depth2img import StableDiffusionDepth2ImgPipeline
from enlarger.diffusers.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from enlarger.diffusers.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from enlarger.diffusers.stable_diffusion_upscale import StableDiffusionUpscalePipeline
from enlarger.diffusers.stable_diffusion_xl import StableDiffusionXLPipeline
from enlarger.diffusers.stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from enlarger.diffusers.stable_diffusion_xl_inpaint import StableDiffusionXLInpaintPipeline
from enlarger.errors import CheckpointError, Unsupported
from enlarger.jsonfile import read_json

FAMILIES: tuple[dict[str, type[Pipeline]], ...] = (
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
OTHERS = (StableDiffusionDepth2ImgPipeline, StableDiffusionLatentUpscalePipeline, StableDiffusionUpscalePipeline)
CLASSES: Mapping[str, type[Pipeline]] = {
    kind.__name__: kind for kind in (*OTHERS, *(kind for family in FAMILIES for kind in family.values()))
}


class DiffusionPipeline:
    """Reads a folder as the pipeline that it names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Pipeline:
        """See `Pipeline.from_pretrained`, whose options these are."""
        kind = _named(pretrained_model_name_or_path)
        if kind not in CLASSES:
            raise Unsupported(
                f"{pretrained_model_name_or_path}: holds a {kind}; the pipelines here are {', '.join(CLASSES)}"
            )
        return CLASSES[kind].from_pretrained(pretrained_model_name_or_path, **options)


class _AutoPipeline:
    """A task that each family does by a class of its own."""

    TASK: ClassVar[str]

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | Path, **options: Any) -> Pipeline:
        """The folder's family doing this task; options are those of `Pipeline.from_pretrained`."""
        kind = cls._of(_named(pretrained_model_or_path), str(pretrained_model_or_path))
        return kind.from_pretrained(pretrained_model_or_path, **options)

    @classmethod
    def from_pipe(cls, pipeline: Pipeline, **parts: Any) -> Pipeline:
        """Another pipeline's parts doing this task; `parts` replaces some."""
        return cls._of(type(pipeline).__name__, "the given pipeline").from_pipe(pipeline, **parts)

    @classmethod
    def _of(cls, kind: str, what: str) -> type[Pipeline]:
        for family in FAMILIES:
            if any(member.__name__ == kind for member in family.values()):
                return family[cls.TASK]
        known = ", ".join(member.__name__ for family in FAMILIES for member in family.values())
        raise Unsupported(f"{what}: is a {kind}, expected one of {known}; read it with DiffusionPipeline")


class AutoPipelineForText2Image(_AutoPipeline):
    """Text to pictures."""

    TASK: ClassVar[str] = "Text2Image"


class AutoPipelineForImage2Image(_AutoPipeline):
    """Pictures to pictures."""

    TASK: ClassVar[str] = "Image2Image"


class AutoPipelineForInpainting(_AutoPipeline):
    """Pictures repainted under a mask."""

    TASK: ClassVar[str] = "Inpainting"


def _named(path: str | Path) -> str:
    """The class that a folder's index names."""
    if not (Path(path) / INDEX).is_file():
        raise CheckpointError(f"{path}: no folder with a {INDEX}, and nothing is downloaded here; give a local folder")
    return str(read_json(Path(path) / INDEX).get("_class_name"))
