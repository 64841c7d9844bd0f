"""What original files hold beside weights: noise schedules, positions and resampling kernels, computed."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.single_file.key_mapping import LAYOUTS
from enlarger.checkpoint.single_file.key_mapping_unet import diffusers_k_unet_levels, k_unet_kernels
from enlarger.strict_json import Json

LOW_RES_PREFIX = "low_scale_model."  # the x4 upscaler's second schedule, of its input's noise
NUM_LOW_RES_BUFFERS = 8  # tables that it has
LAYOUTS_WITH_SCHEDULE = ("sd1", "sd2")  # layouts that hold schedules


def original_buffers(
    layout: str, components: Mapping[str, Collection[str]], pipeline_components: Mapping[str, Json]
) -> dict[str, Tensor]:
    """The constants of an original file: of `components`, our names by network, and of the schedulers."""
    buffers: dict[str, Tensor] = {}
    if layout in LAYOUTS_WITH_SCHEDULE and "scheduler" in pipeline_components:
        buffers |= schedule_buffers(pipeline_components["scheduler"])
    if "low_res_scheduler" in pipeline_components:
        low_res_buffers = list(schedule_buffers(pipeline_components["low_res_scheduler"]).items())[:NUM_LOW_RES_BUFFERS]
        buffers |= {LOW_RES_PREFIX + name: table for name, table in low_res_buffers}
    prefix = LAYOUTS[layout]["text_encoder"].prefix if "text_encoder" in components else ""
    if prefix.endswith("transformer."):
        buffers[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if layout == "x2":
        kernel_1d = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        buffers |= {
            LAYOUTS[layout]["unet"].prefix + name: torch.outer(kernel_1d, kernel_1d) * gain
            for name, gain in k_unet_kernels(diffusers_k_unet_levels(components["unet"]))
        }
    return buffers


def schedule_buffers(config: Json) -> dict[str, Tensor]:
    """The twelve tables of Ho et al. 2020 that the original code registers, float32, in its order."""
    alphas_cumprod = _alphas_cumprod(config)  # the cumulative product of the alphas
    alphas_cumprod_prev = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    betas = 1 - alphas_cumprod / alphas_cumprod_prev
    variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": alphas_cumprod_prev,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp_min(1e-20).log(),
        "posterior_mean_coef1": betas * alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod),
        "posterior_mean_coef2": (1 - alphas_cumprod_prev) * (1 - betas).sqrt() / (1 - alphas_cumprod),
    }
    return {name: table.float() for name, table in buffers.items()}


def _alphas_cumprod(config: Json) -> Tensor:
    """In float64, as the original computes it, where it knows the schedule; else from the levels that we use."""
    is_standard = not config.get("trained_betas") and not config.get("rescale_betas_zero_snr")
    if config.get("beta_schedule") != "scaled_linear" or not is_standard:
        return 1 / (1 + sampler_from_config(config).schedule.sigmas.double() ** 2)
    start, end = (float(config[f"beta_{side}"]) ** 0.5 for side in ("start", "end"))
    betas = torch.linspace(start, end, int(config.get("num_train_timesteps", 1000)), dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)
