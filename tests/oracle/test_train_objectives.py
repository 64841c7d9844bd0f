"""One step's loss and all its gradients, as diffusers' training scripts and k-diffusion compute them."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from enlarger.image.random_mask import lama_mask
from enlarger.train.data import TrainingBatch
from enlarger.train.draws import Draws, draws_of_step
from enlarger.train.objectives import reduced
from enlarger.train.options import DataSettings, LossOptions, TrainOptions
from enlarger.train.start import Training, start
from tests.support import k_diffusion, tiny, tiny_depth, tiny_x4, tiny_xl
from tests.support.close import max_difference
from tests.support.random_weights import normal

CAPTIONS = ("a red circle", "two blue boxes, (seen) from above")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


def batch_of(size: int) -> TrainingBatch:
    """Two pictures that were cut from larger ones."""
    return TrainingBatch(
        normal(2, 3, size, size, seed=21).clamp(-1, 1), CAPTIONS, ((90, 100), (80, 120)), ((0, 4), (3, 0)),
        (size, size), ("a", "b"),
    )  # fmt: skip


def started(task: Any, model: Path, loss: LossOptions, size: int, **options: Any) -> Training:
    asked = TrainOptions(task, model, "data", Path("out"), resolution=size, loss=loss, device="cpu", **options)
    return start(asked, torch.device("cpu"))


def draws() -> Draws:
    return draws_of_step(5, 3, range(2))


def check(training: Training, batch: TrainingBatch, expected: Tensor, theirs: nn.Module) -> None:
    """Our loss, and the gradient of each of our weights, against theirs."""
    found = training.objective(training.module, batch, draws())
    found.backward()
    expected.backward()
    assert abs(found.item() - expected.item()) <= TOLERANCE
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    own = {name: parameter.grad for name, parameter in training.module.named_parameters() if parameter.requires_grad}
    assert own.keys() == gradients.keys() and all(grad is not None for grad in own.values())
    assert max(float(grad.abs().max()) for grad in gradients.values()) > 1e-3  # else the bar below says nothing
    worst = max(max_difference(own[name], gradients[name]) for name in gradients)
    assert worst <= TOLERANCE


def latents(vae: Any, pixels: Tensor, drawn: Draws) -> Tensor:
    """`vae.encode(x).latent_dist.sample() * scaling_factor`, with our noise."""
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        return (posterior.mean + posterior.std * drawn.normal(posterior.mean)) * vae.config.scaling_factor


def tokens(parts: Any) -> Tensor:
    ids = parts["tokenizer"](list(CAPTIONS), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return parts["text_encoder"](ids.input_ids)[0]


def scheduler(config: dict[str, Any], loss: LossOptions) -> Any:
    """The DDPM scheduler that the scripts train with."""
    from diffusers import DDPMScheduler

    betas = {name: config[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    prediction = loss.prediction or config.get("prediction_type", "epsilon")
    return DDPMScheduler(**betas, prediction_type=prediction, rescale_betas_zero_snr=loss.zero_terminal_snr)


def noised(noise_scheduler: Any, clean: Tensor, drawn: Draws, loss: LossOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, times, and the target, in the words of train_text_to_image.py."""
    timesteps = drawn.whole(noise_scheduler.config.num_train_timesteps)
    noise = drawn.normal(clean)
    if loss.offset_noise:
        noise += loss.offset_noise * drawn.normal(clean[:, :, :1, :1])
    noisy = noise_scheduler.add_noise(clean, noise, timesteps)
    targets = {"epsilon": noise, "v_prediction": noise_scheduler.get_velocity(clean, noise, timesteps), "sample": clean}
    return noisy, timesteps, targets[noise_scheduler.config.prediction_type]


def weighted(noise_scheduler: Any, found: Tensor, target: Tensor, timesteps: Tensor, gamma: float | None) -> Tensor:
    """The loss in the words of train_text_to_image.py."""
    from diffusers.training_utils import compute_snr

    if gamma is None:
        return F.mse_loss(found.float(), target.float(), reduction="mean")
    snr = compute_snr(noise_scheduler, timesteps)
    weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    if noise_scheduler.config.prediction_type == "epsilon":
        weights = weights / snr
    elif noise_scheduler.config.prediction_type == "v_prediction":
        weights = weights / (snr + 1)
    loss = F.mse_loss(found.float(), target.float(), reduction="none")
    return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()


def learning(network: Any) -> Any:
    return deepcopy(network).requires_grad_(True)


LOSSES = {
    "epsilon": LossOptions(text_dropout=0),
    "v": LossOptions("v_prediction", text_dropout=0),
    "sample": LossOptions("sample", text_dropout=0),
    "epsilon-offset-snr": LossOptions(offset_noise=0.1, snr_gamma=5.0, text_dropout=0),
    "v-zero-terminal-snr": LossOptions("v_prediction", zero_terminal_snr=True, snr_gamma=5.0, text_dropout=0),
}


@pytest.mark.parametrize("loss", list(LOSSES.values()), ids=list(LOSSES))
def test_text_to_image(loss: LossOptions) -> None:
    parts, batch = tiny.sd1_parts(), batch_of(64)
    training, drawn, unet = started("text-to-image", tiny.sd1_folder(), loss, 64), draws(), learning(parts["unet"])
    clean = latents(parts["vae"], batch.pixels, drawn)
    drawn.uniform()
    noise_scheduler = scheduler(tiny.SD1_SCHEDULER, loss)
    noisy, timesteps, target = noised(noise_scheduler, clean, drawn, loss)
    found = unet(noisy, timesteps, tokens(parts)).sample
    check(training, batch, weighted(noise_scheduler, found, target, timesteps, loss.snr_gamma), unet)


def test_the_last_time_of_a_zero_terminal_schedule_is_pure_noise() -> None:
    loss = LOSSES["v-zero-terminal-snr"]
    noising = started("text-to-image", tiny.sd1_folder(), loss, 64).objective.noising
    clean, noise, last = normal(1, 4, 4, 4), normal(1, 4, 4, 4, seed=2), torch.tensor([999])
    made = noising.at(clean, noise, last)  # type: ignore[attr-defined]
    assert made.x.equal(noise) and made.target.equal(-clean)


def test_sdxl_is_told_sizes_and_crops() -> None:
    parts, batch, loss = tiny_xl.parts(), batch_of(64), LossOptions(text_dropout=0)
    training, drawn, unet = started("text-to-image", tiny_xl.base_folder(), loss, 64), draws(), learning(parts["unet"])
    clean = latents(parts["vae"], batch.pixels, drawn)
    drawn.uniform()
    noise_scheduler = scheduler(tiny_xl.SCHEDULER, loss)
    noisy, timesteps, target = noised(noise_scheduler, clean, drawn, loss)
    states = []
    for end in ("", "_2"):
        ids = parts[f"tokenizer{end}"](list(CAPTIONS), padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            states.append(parts[f"text_encoder{end}"](ids.input_ids, output_hidden_states=True))
    told = {
        "text_embeds": states[1][0],
        "time_ids": torch.tensor([[90, 100, 0, 4, 64, 64], [80, 120, 3, 0, 64, 64]]).float(),
    }
    embeds = torch.cat([state.hidden_states[-2] for state in states], -1)
    found = unet(noisy, timesteps, embeds, added_cond_kwargs=told).sample
    check(training, batch, weighted(noise_scheduler, found, target, timesteps, None), unet)


def widened(unet: Any, channels: int) -> Any:
    """diffusers' UNet with zero weights for more channels, as the scripts for inpainting and InstructPix2Pix do it."""
    from diffusers import UNet2DConditionModel

    wide = UNet2DConditionModel.from_config(unet.config, in_channels=channels)
    weights = dict(unet.state_dict())
    conv_in = torch.zeros_like(wide.conv_in.weight)
    conv_in[:, : unet.conv_in.in_channels] = weights["conv_in.weight"]
    wide.load_state_dict(weights | {"conv_in.weight": conv_in})
    return wide.eval().requires_grad_(True)


def test_inpainting() -> None:
    parts, batch, loss = tiny.sd1_parts(), batch_of(64), LossOptions(text_dropout=0)
    training, drawn, unet = started("inpainting", tiny.sd1_folder(), loss, 64), draws(), widened(parts["unet"], 9)
    clean = latents(parts["vae"], batch.pixels, drawn)
    drawn.uniform()
    mask = torch.stack([lama_mask((64, 64), generator) for generator in drawn.generators])
    masked_latents = latents(parts["vae"], batch.pixels * (mask < 0.5), drawn)
    noise_scheduler = scheduler(tiny.SD1_SCHEDULER, loss)
    noisy, timesteps, target = noised(noise_scheduler, clean, drawn, loss)
    joined = torch.cat([noisy, F.interpolate(mask, size=(8, 8)), masked_latents], dim=1)
    found = unet(joined, timesteps, tokens(parts)).sample
    check(training, batch, weighted(noise_scheduler, found, target, timesteps, None), unet)


def test_depth() -> None:
    pytest.importorskip("transformers")
    parts, batch, loss = tiny_depth.depth_parts(), batch_of(64), LossOptions(text_dropout=0)
    batch = replace(batch, pixels=batch.pixels.add(1).mul(127.5).round().div(127.5).sub(1))  # as files have them
    training, drawn, unet = started("depth", tiny_depth.depth_folder(), loss, 64), draws(), learning(parts["unet"])
    clean = latents(parts["vae"], batch.pixels, drawn)
    drawn.uniform()
    images = [Image.fromarray(one.permute(1, 2, 0).add(1).mul(127.5).round().byte().numpy()) for one in batch.pixels]
    seen = parts["feature_extractor"](images, return_tensors="pt")
    with torch.no_grad():
        depth = parts["depth_estimator"](seen.pixel_values).predicted_depth
    depth = F.interpolate(depth[:, None], (8, 8), mode="bicubic", align_corners=False)
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    depth = 2 * (depth - low) / (high - low) - 1
    noise_scheduler = scheduler(tiny_depth.SCHEDULER, loss)
    noisy, timesteps, target = noised(noise_scheduler, clean, drawn, loss)
    found = unet(torch.cat([noisy, depth], 1), timesteps, tokens(parts)).sample
    check(training, batch, weighted(noise_scheduler, found, target, timesteps, None), unet)


def test_upscaler_x4() -> None:
    parts, batch, loss = tiny_x4.x4_parts(), batch_of(64), LossOptions(text_dropout=0)
    training, drawn, unet = started("upscaler-x4", tiny_x4.x4_folder(), loss, 64), draws(), learning(parts["unet"])
    clean = latents(parts["vae"], batch.pixels, drawn)
    drawn.uniform()
    level, low_res = drawn.whole(351), reduced(batch.pixels, 4)
    noisy_low_res = parts["low_res_scheduler"].add_noise(low_res, drawn.normal(low_res), level)
    noise_scheduler = scheduler(tiny_x4.SCHEDULER, loss)
    noisy, timesteps, target = noised(noise_scheduler, clean, drawn, loss)
    found = unet(torch.cat([noisy, noisy_low_res], 1), timesteps, tokens(parts), class_labels=level).sample
    check(training, batch, weighted(noise_scheduler, found, target, timesteps, None), unet)


def test_upscaler_x2() -> None:
    """k-diffusion's loss with a learned variance, around diffusers' network."""
    layers = k_diffusion.load("layers")
    parts, batch = tiny.x2_parts(), batch_of(128)
    training = started(
        "upscaler-x2", tiny.x2_folder(), LossOptions(text_dropout=0), 128, data_settings=DataSettings(buckets=False)
    )
    drawn, unet = draws(), learning(parts["unet"])
    unet.time_proj.requires_grad_(False)
    clean = latents(parts["vae"], batch.pixels, drawn)
    drawn.uniform()
    ids = parts["tokenizer"](list(CAPTIONS), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        text = parts["text_encoder"](ids.input_ids, output_hidden_states=True)
    low_res = latents(parts["vae"], reduced(batch.pixels, 2), drawn)
    level = 0.6 * drawn.uniform()
    low_res = (low_res + level[:, None, None, None] * drawn.normal(low_res)) / (
        level[:, None, None, None] ** 2 + 1
    ) ** 0.5
    weight = training.components.components["noise_frequencies"]
    features = 2 * torch.pi * level.log1p()[:, None] @ weight.T
    condition = torch.cat([features.cos(), features.sin(), text.pooler_output], 1)
    noise, share = drawn.normal(clean), drawn.uniform()

    class Inner(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, return_variance: bool) -> tuple[Tensor, Tensor]:
            joined = torch.cat([x, F.interpolate(low_res, scale_factor=2, mode="nearest")], 1)
            output = unet(joined, sigma.log() / 4, text.hidden_states[-1], timestep_cond=condition).sample
            return output[:, :-1], output[:, -1].flatten(1).mean(1)

    sigmas = training.sampler.schedule.sigmas.log()
    sigma = (float(sigmas[0]) + float(sigmas[-1] - sigmas[0]) * share).exp()
    expected = layers.DenoiserWithVariance(Inner()).loss(clean, noise, sigma).mean()
    check(training, batch, expected, unet)
