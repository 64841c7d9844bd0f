"""What original files hold beside weights: noise schedules, positions and resampling kernels, computed."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from enlarger.checkpoint.names import LAYOUTS
from enlarger.checkpoint.names_unet import k_kernels, our_k_levels
from enlarger.checkpoint.schedulers import schedule_config
from enlarger.jsonfile import Json

LOW = "low_scale_model."  # the x4 upscaler's second schedule, of its input's noise
LOW_COUNT = 8  # tables that it has
SCHEDULED = ("sd1", "sd2")  # layouts that hold schedules


def constants(layout: str, components: Mapping[str, Collection[str]], parts: Mapping[str, Json]) -> dict[str, Tensor]:
    """The constants of an original file: of `components`, our names by network, and of the schedulers in `parts`."""
    found: dict[str, Tensor] = {}
    if layout in SCHEDULED and "scheduler" in parts:
        found |= schedule_tables(parts["scheduler"])
    if "low_res_scheduler" in parts:
        low = list(schedule_tables(parts["low_res_scheduler"]).items())[:LOW_COUNT]
        found |= {LOW + name: table for name, table in low}
    prefix = LAYOUTS[layout]["text_encoder"].prefix if "text_encoder" in components else ""
    if prefix.endswith("transformer."):
        found[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if layout == "x2":
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        found |= {
            LAYOUTS[layout]["unet"].prefix + name: torch.outer(line, line) * gain
            for name, gain in k_kernels(our_k_levels(components["unet"]))
        }
    return found


def schedule_tables(config: Json) -> dict[str, Tensor]:
    """The twelve tables of Ho et al. 2020 that the original code registers, float32, in its order."""
    kept = _kept(config)  # the cumulative product of the alphas
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    betas = 1 - kept / before
    variance = betas * (1 - before) / (1 - kept)
    tables = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - kept).log(),
        "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp_min(1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - kept),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - kept),
    }
    return {name: table.float() for name, table in tables.items()}


def _kept(config: Json) -> Tensor:
    """In float64, as the original computes it, where it knows the schedule; else from the levels that we use."""
    plain = not config.get("trained_betas") and not config.get("rescale_betas_zero_snr")
    if config.get("beta_schedule") != "scaled_linear" or not plain:
        return 1 / (1 + schedule_config(config).schedule.sigmas.double() ** 2)
    start, end = (float(config[f"beta_{side}"]) ** 0.5 for side in ("start", "end"))
    betas = torch.linspace(start, end, int(config.get("num_train_timesteps", 1000)), dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)
