"""What AUTOMATIC1111's API says of pictures: their seeds, and the text that is in their files."""

import time
from typing import Any

from enlarger.image.generation import a1111_parameters
from enlarger.service.jobs.job import Job
from enlarger.service.routes.a1111.payloads import Sampling
from enlarger.service.routes.responses import result_of_job
from enlarger.service.worker.generation_metadata import metadata_of_image


def generation_info(job: Job, body: Sampling) -> dict[str, Any]:
    """The `info` of txt2img and img2img."""
    result = result_of_job(job)
    options = job.spec.options
    prompt, negative = str(options.get("prompt", "")), str(options.get("negative", ""))
    seeds = [image.seed for image in result.images]
    count, first = len(result.images), result.images[0]
    recipe = result.recipe
    texts = [
        "" if recipe is None else a1111_parameters(metadata_of_image(dict(recipe), index), (image.width, image.height))
        for index, image in enumerate(result.images)
    ]
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": body.sampler_name,
        "cfg_scale": body.cfg_scale,
        "steps": body.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.spec.model,
        "sd_model_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": options.get("strength"),
        "extra_generation_params": {"notes": list(dict.fromkeys((*job.spec.notes, *result.notes)))},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": body.styles,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created)),
        "clip_skip": options.get("clip_skip", 1),
        "is_using_inpainting_conditioning": job.spec.task == "inpaint",
    }
