"""Pictures made in the midst of a training, of what its network is told of a batch."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import PerSampleGenerators
from enlarger.image.atomic_write import atomic_write
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning
from enlarger.tasks.latent_diffusion.sampling import Expert, SamplingPlan, sample_latents
from enlarger.train.data import TrainingBatch
from enlarger.train.draws import Draws, draws_of_step
from enlarger.train.options import SampleOptions
from enlarger.train.start import Training


def write_samples(
    training: Training, network: nn.Module, batch: TrainingBatch, options: SampleOptions, path: Path, seed: int
) -> None:
    """One row of pictures as a PNG: of the options' prompts, or of the batch's captions."""
    captions = options.sample_prompts or batch.captions
    rows = [i % len(batch.captions) for i in range(len(captions))]
    asked = replace(
        batch,
        pixels=batch.pixels[rows],
        captions=tuple(captions),
        original_size=tuple(batch.original_size[row] for row in rows),
        crop_top_left=tuple(batch.crop_top_left[row] for row in rows),
    )
    pictures = sample_pictures(training, network, asked, options, seed)
    row = torch.cat(list(pictures), dim=2).add(1).mul(127.5).round().to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        Image.fromarray(row.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")


@torch.no_grad()
def sample_pictures(
    training: Training, network: nn.Module, batch: TrainingBatch, options: SampleOptions, seed: int
) -> Tensor:
    """A picture (B, 3, H, W) in -1..1 for each of a batch, told what the objective tells, from the noise of a seed."""
    objective, latent_diffusion = training.objective, training.objective.latent_diffusion
    count, was_training = len(batch.captions), network.training

    def draws() -> Draws:
        return draws_of_step(seed, 0, range(count))

    def told(dropout: float) -> tuple[Tensor, GuidedConditioning]:
        without_text = replace(objective, text=replace(objective.text, dropout=dropout))
        clean, conditioning = without_text.prepare(batch, draws())
        return clean, GuidedConditioning(conditioning)

    clean, conditioning = told(0.0)
    if options.sample_guidance != 1:
        conditioning = replace(conditioning, negative=told(1.0)[1].positive, guidance=Guidance(options.sample_guidance))
    schedule, noise = training.sampler.sigma_schedule(options.sample_steps), PerSampleGenerators(draws().generators)
    plan = SamplingPlan(schedule, training.sampler.make_solver(), noise)
    expert = Expert(network.eval(), latent_diffusion.precondition, conditioning)
    start = latent_diffusion.draw_noise(tuple(clean.shape), noise) * schedule.init_noise_sigma
    latents = sample_latents([expert], start, plan, latent_diffusion.runtime)
    network.train(was_training)
    return latent_diffusion.decode(latents).clamp(-1, 1).cpu()
