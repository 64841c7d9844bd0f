"""Laws of the solvers, on data of which the exact answer is known, and of what surrounds them."""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from enlarger.diffusion import precondition, solvers
from enlarger.diffusion.conditioning import Conditioning, stack_branches
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise, PerSampleGenerators, SharedGenerator, from_seeds
from enlarger.diffusion.sample import Solver, Step, sample, walk
from enlarger.diffusion.sampler import Sampler, network_call_sigmas
from enlarger.diffusion.schedule import check_sigmas, karras_sigmas, scaled_linear
from enlarger.diffusion.solvers import SOLVERS, PIDStepSizeController
from enlarger.errors import Cancelled, InputError, NonFinite, Unsupported
from tests.support.close import assert_close, max_difference
from tests.support.random_weights import normal, randomise

MEAN, SPREAD = 0.4, 0.7  # of the data
MOST, LEAST = 10.0, 0.1
USUAL = (64, 128, 256)
DETERMINISTIC: dict[str, tuple[Solver, float, tuple[int, ...]]] = {  # with the order and the steps that show it
    "euler": (solvers.euler, 1, USUAL),
    "ddim": (solvers.ddim, 1, USUAL),
    "heun": (solvers.heun, 2, USUAL),
    "plms": (solvers.plms, 2, USUAL),
    "pndm": (solvers.pndm, 2, USUAL),
    "lms": (solvers.lms, 2, (512, 1024, 2048)),  # its first step is Euler's
    "dpm2": (solvers.dpm2, 2, USUAL),
    "dpm_fast": (solvers.dpm_fast, 3, (47, 95, 191)),  # lengths after which the last step is of second order
    "dpmpp_singlestep of order 1": (partial(solvers.dpmpp_singlestep, order=1), 1, USUAL),
    "dpmpp_singlestep": (solvers.dpmpp_singlestep, 2, USUAL),
    "dpmpp_singlestep of order 3": (
        partial(solvers.dpmpp_singlestep, order=3, lower_order_final=False),
        3,
        (48, 96, 192),
    ),
    "dpmpp_singlestep of order 3, heun": (
        partial(solvers.dpmpp_singlestep, order=3, heun=True, lower_order_final=False),
        3,
        (48, 96, 192),
    ),
    "dpmpp_2m": (solvers.dpmpp_2m, 2, USUAL),
    "dpmpp_2m, heun": (partial(solvers.dpmpp_2m, heun=True), 2, USUAL),
    "unipc of order 1": (partial(solvers.unipc, order=1), 2, USUAL),  # the corrector adds one
    "unipc": (solvers.unipc, 3, USUAL),
    "unipc, bh1": (partial(solvers.unipc, bh1=True), 3, USUAL),
    "unipc of order 3": (partial(solvers.unipc, order=3), 4, USUAL),
    "euler_ancestral at eta 0": (partial(solvers.euler_ancestral, eta=0.0), 1, USUAL),
    "dpm2_ancestral at eta 0": (partial(solvers.dpm2_ancestral, eta=0.0), 2, USUAL),
    "dpmpp_2s_ancestral at eta 0": (partial(solvers.dpmpp_2s_ancestral, eta=0.0), 2, USUAL),
    "dpmpp_sde at eta 0": (partial(solvers.dpmpp_sde, eta=0.0), 2, USUAL),
    "dpmpp_2m_sde at eta 0": (partial(solvers.dpmpp_2m_sde, eta=0.0), 2, USUAL),
    "dpmpp_3m_sde at eta 0": (partial(solvers.dpmpp_3m_sde, eta=0.0), 2, USUAL),  # its quadratic term is halved
}
STOCHASTIC: dict[str, Solver] = {
    "euler_ancestral": solvers.euler_ancestral,
    "ddim at eta half": partial(solvers.ddim, eta=0.5),
    "ddpm": solvers.ddpm,
    "dpm2_ancestral": solvers.dpm2_ancestral,
    "dpmpp_2s_ancestral": solvers.dpmpp_2s_ancestral,
    "dpmpp_sde": solvers.dpmpp_sde,
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "dpmpp_singlestep at eta 1": partial(solvers.dpmpp_singlestep, eta=1.0),
    "dpm_fast at eta 1": partial(solvers.dpm_fast, eta=1.0),
    "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
    "dpm_adaptive at eta 1": partial(
        solvers.dpm_adaptive, eta=1.0, step_size_controller=PIDStepSizeController(0.01, 0.001)
    ),
}
NOISE_LEVELS = {
    "long": torch.cat([karras_sigmas(0.05, MOST, 8), torch.zeros(1, dtype=torch.float64)]),
    "above 0": karras_sigmas(0.05, MOST, 8),
    "one step": torch.tensor([MOST, 0.0], dtype=torch.float64),
    "one step above 0": torch.tensor([MOST, 0.5], dtype=torch.float64),
}


MIXING = ("plms", "pndm", "lms")  # of several slopes also on the step to 0


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The clean estimate for data N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(x: Tensor, sigma: float, lower: float) -> Tensor:
    """Where the flow carries x from one noise level to another."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + lower**2) / (SPREAD**2 + sigma**2))


def noise(seed: int = 0) -> Noise:
    return SharedGenerator(torch.Generator().manual_seed(seed))


def start(*shape: int) -> Tensor:
    return normal(*(shape or (2, 1, 4, 4))) * MOST


def error(solver: Solver, steps: int) -> float:
    noise_levels = torch.logspace(math.log10(MOST), math.log10(LEAST), steps + 1, dtype=torch.float64)
    x = start().double()
    return max_difference(sample(solver, gaussian, x, noise_levels, noise()), exact(x, MOST, LEAST))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_halving_the_steps_divides_the_error_by_the_order(name: str) -> None:
    solver, order, counts = DETERMINISTIC[name]
    errors = [error(solver, steps) for steps in counts]
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.12), measured
    assert errors[-1] < (0.02 if order == 1 else 5e-4)


def test_the_adaptive_error_falls_with_the_tolerance() -> None:
    controls = [PIDStepSizeController(rtol=r, atol=r / 10) for r in (0.1, 0.01, 0.001, 0.0001)]
    errors = [error(partial(solvers.dpm_adaptive, step_size_controller=control), 1) for control in controls]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 5e-4, errors


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_reproduce_mean_and_spread(name: str) -> None:
    x = MEAN + normal(1, 1, 100, 200) * math.sqrt(SPREAD**2 + MOST**2)
    noise_levels = torch.cat([karras_sigmas(0.01, MOST, 300), torch.zeros(1, dtype=torch.float64)])
    found = sample(STOCHASTIC[name], gaussian, x, noise_levels, noise(1))
    assert abs(float(found.mean()) - MEAN) < 0.02
    assert abs(float(found.std()) - SPREAD) < 0.02  # 0.0035 of it is chance
    if name in (
        "euler_ancestral",
        "ddpm",
        "dpm2_ancestral",
        "dpmpp_2s_ancestral",
        "dpmpp_sde",
        "dpmpp_2m_sde",
    ):  # eta 1 reverses the noising: as much of the start is remembered
        memory = float(torch.corrcoef(torch.stack([x.flatten(), found.flatten()]))[0, 1])
        assert abs(memory - SPREAD / math.sqrt(SPREAD**2 + MOST**2)) < 0.03


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("noise_levels", NOISE_LEVELS)
def test_every_solver_walks_to_the_end(name: str, noise_levels: str) -> None:
    sigmas, x = NOISE_LEVELS[noise_levels], start()
    steps = list(walk(SOLVERS[name], gaussian, x, sigmas, noise()))
    assert abs(float(steps[-1].sigma) - float(sigmas[-1])) < 1e-5
    assert steps[-1].x.shape == x.shape and steps[-1].x.dtype == torch.float32
    assert torch.isfinite(steps[-1].x).all()
    if sigmas[-1] == 0 and name not in MIXING:
        assert_close(steps[-1].x, steps[-1].denoised, 1e-5)  # the last step jumps to the clean estimate
    if name not in ("dpm_adaptive", "dpm_fast"):
        assert [float(step.sigma) for step in steps] == [float(sigma) for sigma in sigmas[1:]]
    if noise_levels == "long" and name in ("heun", "dpm_adaptive"):
        assert_close(steps[-1].x, exact(x, MOST, 0.0), 0.15)


def test_one_step_to_0_is_the_clean_estimate() -> None:
    x = start()
    for solver in SOLVERS.values():
        assert_close(
            sample(solver, gaussian, x, NOISE_LEVELS["one step"], noise()), gaussian(x, torch.tensor(MOST)), 1e-5
        )


def test_euler_is_ddim_at_eta_0() -> None:
    for noise_levels in NOISE_LEVELS.values():
        found = sample(solvers.ddim, gaussian, start(), noise_levels, noise())
        assert_close(found, sample(solvers.euler, gaussian, start(), noise_levels, noise()), 1e-6)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "dpm_adaptive"])  # which reads the error
def test_levels_stay_on_the_cpu(name: str) -> None:
    x = torch.empty(1, 1, 4, 4, device="meta")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.device.type == "cpu" and sigma.dtype == torch.float64
        return x / (sigma + 1)

    steps = list(walk(SOLVERS[name], denoise, x, NOISE_LEVELS["long"], torch.empty_like))  # pyright: ignore[reportArgumentType]
    assert steps[-1].x.device.type == "meta" and steps[-1].x.dtype == torch.float32


@pytest.mark.parametrize("name", SOLVERS)
def test_two_interleaved_samplings_equal_two_separate_ones(name: str) -> None:
    solver, noise_levels = SOLVERS[name], NOISE_LEVELS["long"]
    starts = [start(1, 1, 4, 4), start(1, 1, 3, 5) / 2]
    separate = [[s.x for s in walk(solver, gaussian, x, noise_levels, noise(i))] for i, x in enumerate(starts)]
    running = [walk(solver, gaussian, x, noise_levels, noise(i)) for i, x in enumerate(starts)]
    found: list[list[Tensor]] = [[], []]
    for index in [0, 1, 1, 0] * 100:
        found[index] += [step.x for step in [next(running[index], None)] if step is not None]
    for ours, theirs in zip(found, separate, strict=True):
        assert len(ours) == len(theirs) and all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


CALLS = {  # of the network: for the first step, for each further one, and for one to 0
    "plms": (2, 1, 1),
    "heun": (2, 2, 1),
    "dpm2": (2, 2, 1),
    "dpm2_ancestral": (2, 2, 1),
    "dpmpp_2s_ancestral": (2, 2, 1),
    "dpmpp_sde": (2, 2, 1),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("noise_levels", NOISE_LEVELS)
def test_calls_are_known_beforehand(name: str, noise_levels: str) -> None:
    sigmas, seen, x = NOISE_LEVELS[noise_levels], list[float](), start()

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return gaussian(x, sigma)

    list(walk(SOLVERS[name], counted, x, sigmas, noise()))
    said = network_call_sigmas(SOLVERS[name], sigmas)
    if name == "dpm_adaptive":
        assert said is None and network_call_sigmas(partial(solvers.dpm_adaptive, eta=1.0), sigmas) is None
        return
    assert said == pytest.approx(seen) and said[0] == pytest.approx(MOST) and min(said) > 0
    count, to_zero = len(sigmas) - 1, bool(sigmas[-1] == 0)
    first, further, last = CALLS.get(name, (1, 1, 1))
    if name == "pndm":
        wanted = count + 3 * min(count - to_zero, 3)
    elif count == 1:
        wanted = 1 if to_zero or name == "plms" else first
    else:
        wanted = first + further * (count - 1 - to_zero) + last * to_zero
    assert len(said) == wanted


class Toy(nn.Module):
    """A network that uses all that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.text = nn.Linear(4, 2)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        shift = self.text(tokens.mean(1)) + torch.sin(time / 100)[:, None]
        return torch.tanh(self.conv(x) + shift[:, :, None, None])


def denoiser(count: int, scale: float = 1.0, rescale: float = 0.0, *, guided: bool = True, **more: object) -> Denoiser:
    """With another text and other extra channels for each image."""
    given = Conditioning(tokens=normal(count, 5, 4), concat=normal(count, 1, 4, 4, seed=2))
    without = Conditioning(tokens=normal(1, 5, 4, seed=3).expand(count, -1, -1), concat=given.concat)
    schedule = scaled_linear(0.00085, 0.012)
    return Denoiser(
        randomise(Toy()),
        torch.float32,
        precondition.epsilon(schedule),
        given,
        stack_branches(without, given) if guided else None,
        Guidance(scale, rescale, **more),  # pyright: ignore[reportArgumentType]
    )


def unconditional(count: int) -> Denoiser:
    made = denoiser(count, guided=False)
    without = Conditioning(tokens=normal(1, 5, 4, seed=3).expand(count, -1, -1), concat=made.conditioning.concat)
    return Denoiser(made.network, made.dtype, made.precondition, without)


def run(denoise: Callable[[Tensor, Tensor], Tensor], count: int = 2) -> Tensor:
    return sample(solvers.heun, denoise, start(count, 2, 4, 4), NOISE_LEVELS["long"], noise())


def test_guidance_1_is_the_conditional_branch_and_0_the_unconditional_one() -> None:
    assert run(denoiser(2)).equal(run(denoiser(2, guided=False)))
    assert_close(run(denoiser(2, 0.0)), run(unconditional(2)), 1e-5)
    assert max_difference(run(denoiser(2, 3.0)), run(denoiser(2))) > 0.05


def test_guidance_is_linear_in_its_scale() -> None:
    x, sigma = start(2, 2, 4, 4), torch.tensor(3.0, dtype=torch.float64)
    zero, one, minus = (denoiser(2, scale)(x, sigma) for scale in (0.0, 1.0, -2.0))
    assert_close(minus, zero - 2 * (one - zero), 1e-5)


def test_rescale_restores_the_contrast_of_the_conditional_branch() -> None:
    output = normal(4, 2, 8, 8)
    plain, restored = Guidance(7.0).combine(output), Guidance(7.0, 1.0).combine(output)
    assert Guidance(7.0, 0.0).combine(output).equal(plain)
    assert_close(restored.std((1, 2, 3)), output[2:].std((1, 2, 3)), 1e-5)
    assert_close(Guidance(7.0, 0.3).combine(output), 0.3 * restored + 0.7 * plain, 1e-5)


def test_outside_its_interval_guidance_is_off() -> None:
    x = start(2, 2, 4, 4)
    for sigma, on in ((0.9, False), (1.0, True), (2.0, True), (2.1, False)):
        level = torch.tensor(sigma, dtype=torch.float64)
        found = denoiser(2, 4.0, interval=(1.0, 2.0))(x, level)
        assert found.equal(denoiser(2, 4.0 if on else 1.0)(x, level))
    assert Guidance(0.0).is_active(5.0) and not Guidance(1.0).is_active(5.0)


def taken(conditioning: Conditioning, part: slice) -> Conditioning:
    """The conditioning of some images of the batch."""
    values = {field.name: getattr(conditioning, field.name) for field in fields(conditioning)}
    return Conditioning(**{name: None if value is None else value[part] for name, value in values.items()})


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "dpm_adaptive"])
def test_a_batch_equals_singles(name: str) -> None:
    whole, seeds = denoiser(3, 2.5), [5, 9, 0]
    x = start(3, 2, 4, 4)
    found = sample(SOLVERS[name], whole, x, NOISE_LEVELS["long"], from_seeds(seeds))
    for i, seed in enumerate(seeds):
        part = slice(i, i + 1)
        given, without = taken(whole.conditioning, part), taken(unconditional(3).conditioning, part)
        alone = Denoiser(
            whole.network, whole.dtype, whole.precondition, given, stack_branches(without, given), whole.guidance
        )  # fmt: skip
        single = sample(SOLVERS[name], alone, x[part], NOISE_LEVELS["long"], from_seeds([seed]))
        assert_close(single, found[part], 1e-5)


def test_precision_changes_in_the_denoiser_only() -> None:
    full = denoiser(2)
    half = Denoiser(randomise(Toy()).bfloat16(), torch.bfloat16, full.precondition, full.conditioning)
    found = run(half)
    assert found.dtype == torch.float32
    assert_close(found, run(full), 0.3)


def test_a_watcher_sees_every_step_and_may_stop() -> None:
    seen: list[Step] = []
    noise_levels = NOISE_LEVELS["long"]

    def record(step: Step) -> Tensor:
        seen.append(step)
        return step.x

    result = sample(solvers.euler, gaussian, start(), noise_levels, noise(), record)
    assert [float(step.sigma) for step in seen] == noise_levels[1:].tolist() and seen[-1].x is result

    def stop(step: Step) -> Tensor:
        if step.sigma < 1:
            raise Cancelled("enough")
        return step.x

    for solver in SOLVERS.values():
        with pytest.raises(Cancelled, match=r"^enough$"):
            sample(solver, gaussian, start(), noise_levels, noise(), stop)


@pytest.mark.parametrize("name", SOLVERS)
def test_latents_change_by_what_is_sent_alone(name: str) -> None:
    """The solver goes on from the latents that `on_step` gives, and nobody writes into those of a step."""
    steps: list[Step] = []
    copies: list[Step] = []

    def shift(step: Step) -> Tensor:
        steps.append(step)
        copies.append(Step(step.x.clone(), step.denoised.clone(), step.sigma))
        return step.x + 1

    result = sample(SOLVERS[name], gaussian, start(), NOISE_LEVELS["long"], noise(), shift)
    assert result.equal(steps[-1].x + 1)
    assert all(a.x.equal(b.x) and a.denoised.equal(b.denoised) for a, b in zip(steps, copies, strict=True))
    assert not result.equal(sample(SOLVERS[name], gaussian, start(), NOISE_LEVELS["long"], noise()) + 1)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_picture_is_made_of_what_is_not_a_number(name: str, value: float) -> None:
    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(x, value)

    with pytest.raises(NonFinite, match=r"not finite .*torch.float32.*run in float32"):
        sample(SOLVERS[name], broken, start(), NOISE_LEVELS["long"], noise())


def test_refusals() -> None:
    with pytest.raises(Unsupported, match=r"must fall strictly to 0 or above, found 1, 2"):
        check_sigmas(torch.tensor([1.0, 2.0]))
    for bad in ([1.0], [1.0, -0.1], [math.inf, 0.0]):
        with pytest.raises(Unsupported, match="sigmas must fall strictly"):
            check_sigmas(torch.tensor(bad))
    sampler = Sampler(scaled_linear(0.00085, 0.012))
    assert sampler.with_solver(None) is sampler and sampler.with_solver("heun").solver == "heun"
    with pytest.raises(InputError, match="no solver is called 'magic'; there are euler, "):
        sampler.with_solver("magic")
    with pytest.raises(AssertionError, match="2 images for 1 generators"):
        PerSampleGenerators((torch.Generator(),))(torch.zeros(2, 1))
