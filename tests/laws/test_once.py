"""What does not change from step to step is computed once, gives the same numbers, and nothing waits for the device."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from enlarger.diffusers import schedulers
from enlarger.diffusers.call.run import listed
from enlarger.diffusion import overflow, precondition
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.overflow import FiniteCheck
from enlarger.diffusion.prepared import PreparedNetwork
from enlarger.diffusion.sample import unchanged, walk
from enlarger.diffusion.sampler import Sampler
from enlarger.diffusion.schedule import scaled_linear
from enlarger.diffusion.solvers import SOLVERS
from enlarger.diffusion.windows import Windows
from enlarger.errors import InputError, NonFinite
from enlarger.nn import fused_attention
from enlarger.nn.blocks import Attention
from enlarger.nn.k_unet import KStage, KUNet, KUNetConfig
from enlarger.nn.unet import Stage, UNet, UNetConfig
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning
from enlarger.tasks.latent_diffusion.sampling import Expert, KnownRegion, SamplingPlan, hold_denoiser, sample_latents
from enlarger.tasks.loading.stable_diffusion import load_stable_diffusion
from enlarger.tasks.text_to_image import Generator
from tests.oracle.test_unet import BASE, SD1, X4
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

SAMPLER = Sampler(scaled_linear(0.00085, 0.012))
SIGMAS = SAMPLER.sigma_schedule(4)
CONTEXT = 24
META = torch.device("meta")


def k_unet() -> KUNet:
    stages = (KStage(16, 1, False, False), KStage(32, 1, True, True))
    return randomise(KUNet(KUNetConfig(4, 4, stages, CONTEXT, 16, vector_channels=6)))


SMALL = (Stage(8, 1, 1, 2), Stage(16, 1, 1, 2))


def unet(stages: Any = SMALL, **more: Any) -> UNet:
    return randomise(UNet(UNetConfig(4, 4, stages, 1, 2, CONTEXT, linear_projection=True, groups=8, **more)))


def tokens(count: int = 2, seed: int = 4) -> Tensor:
    return normal(count, 7, CONTEXT, seed=seed)


NETWORKS: Mapping[str, tuple[Any, dict[str, Tensor]]] = {
    "sd1": (lambda: unet(SD1), {"tokens": tokens()}),
    "masked": (unet, {"tokens": tokens(), "mask": torch.tensor([[True] * 4 + [False] * 3] * 2)}),
    "sdxl": (lambda: unet(BASE, vector_channels=20), {"tokens": tokens(), "vector": normal(2, 20)}),
    "x4": (lambda: unet(X4, num_class_embeds=9), {"tokens": tokens(), "label": torch.tensor([3, 8])}),
    "distilled": (lambda: unet(guidance_channels=5), {"tokens": tokens(), "guidance": normal(2, 5)}),
    "x2": (
        k_unet,
        {"tokens": tokens(), "vector": normal(2, 6), "mask": torch.tensor([[True] * 5 + [False] * 2] * 2)},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_prepared_conditioning_gives_the_same_numbers(name: str, fused: bool) -> None:
    make, inputs = NETWORKS[name]
    network, x, time = make(), normal(2, 4, 16, 16), torch.tensor([3.0, 3.0])
    if fused:
        fused_attention.fuse(network)
    with torch.inference_mode():
        assert_close(network(x, time, prepared=network.prepare(**inputs)), network(x, time, **inputs), 0)


def test_a_network_without_tokens_says_so() -> None:
    for network in (unet(), k_unet()):
        with pytest.raises(InputError, match=r"got no `tokens`; pass the features of a prompt"):
            network(normal(1, 4, 16, 16), torch.zeros(1))


def projections(network: nn.Module) -> list[int]:
    """Counts every projection of tokens to keys, as they are made."""
    counted = list[int]()
    for part in network.modules():
        if isinstance(part, Attention) and part.is_cross:
            part.to_k.register_forward_hook(lambda *_: counted.append(1))
    return counted


def run(expert: Expert, x: Tensor, windows: Windows | None = None, known: KnownRegion | None = None) -> Tensor:
    plan = SamplingPlan(SIGMAS, SOLVERS["heun"], from_seeds(range(len(x))), windows)
    return sample_latents([expert], x * SIGMAS.init_noise_sigma, plan, Runtime(), known_region=known)


def expert(network: nn.Module, guidance: Guidance = Guidance(3.0), dtype: torch.dtype = torch.float32) -> Expert:
    made = GuidedConditioning(Conditioning(tokens(1)), Conditioning(tokens(1, seed=9)), guidance)
    return Expert(network.to(dtype), precondition.epsilon(SAMPLER.schedule), made)


@pytest.mark.parametrize("windows", [None, Windows(8, 4, 4)], ids=["whole", "windows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_text_is_looked_at_once_in_a_run(windows: Windows | None, dtype: torch.dtype) -> None:
    network = unet()
    counted, layers = projections(network), sum(isinstance(p, Attention) and p.is_cross for p in network.modules())
    run(expert(network, dtype=dtype), normal(1, 4, 16, 16), windows)
    assert len(counted) == layers
    low = SIGMAS.sigmas[2]
    run(expert(network, Guidance(3.0, interval=(float(low), 1e9)), dtype), normal(1, 4, 16, 16), windows)
    assert len(counted) == 3 * layers, "with guidance, and without"


def test_other_tokens_and_other_weights_are_looked_at_anew() -> None:
    network = unet()
    prepared, x, time, given = PreparedNetwork(network), normal(2, 4, 16, 16), torch.tensor([3.0, 3.0]), tokens()
    counted = projections(network)
    for change in (lambda: None, lambda: given.mul_(2), lambda: given[0].zero_()):
        change()
        before = len(counted)
        assert_close(prepared(x, time, tokens=given), network(x, time, tokens=given), 0)
        assert len(counted) > before
    assert_close(prepared(x, time, tokens=tokens(seed=5)), network(x, time, tokens=tokens(seed=5)), 0)
    first = run(expert(network), normal(1, 4, 16, 16))
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, Attention) and part.is_cross:
                part.to_k.weight.mul_(3)
    again = run(expert(network), normal(1, 4, 16, 16))
    assert not again.equal(first)


def test_an_attention_of_a_users_own_sees_the_tokens() -> None:
    seen = list[Tensor]()

    class Own(nn.Module):
        def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
            seen.append(context)
            return x

    network = unet()
    network.down_blocks[0].attentions[0].transformer_blocks[0].attn2 = Own()
    given = tokens()
    PreparedNetwork(network)(normal(2, 4, 16, 16), torch.zeros(2), tokens=given)
    assert len(seen) == 1 and seen[0] is given


class Rows(nn.Module):
    """A network that counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.counted = nn.Parameter(torch.ones(1)), list[int]()

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        self.counted.append(len(x))
        return torch.tanh(x * self.weight + tokens.mean((1, 2))[:, None, None, None])


@pytest.mark.parametrize(
    ("scale", "equal", "rows"), [(3.0, False, 2), (3.0, True, 1), (1.0, False, 1), (0.0, False, 1), (-2.0, False, 2)]
)
def test_a_branch_that_cannot_matter_is_left_out(scale: float, equal: bool, rows: int) -> None:
    network, x = Rows(), normal(1, 4, 8, 8)
    positive, negative = Conditioning(tokens(1)), Conditioning(tokens(1, seed=4 if equal else 9))
    told = GuidedConditioning(positive, negative, Guidance(scale))
    found = run(Expert(network, precondition.epsilon(SAMPLER.schedule), told), x)
    assert set(network.counted) == {rows}
    always = replace(told, guidance=Always(scale))
    expected = run(Expert(network, precondition.epsilon(SAMPLER.schedule), always), x)
    assert set(network.counted) == {rows, 2}
    assert_close(found, expected, 1e-6)


class Always(Guidance):
    """Guidance that runs both branches whatever its scale is."""

    is_live = True

    def is_active(self, sigma: float) -> bool:
        return True


def test_equal_prompts_are_encoded_once() -> None:
    model = load_stable_diffusion(tiny.sd1_folder(), "cpu", "float32")
    rows = list[int]()
    model.text_encoders[0].register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    generator = Generator(model)
    made = generator("a cat", negative="dull", count=3, steps=1, width=32, height=32)
    assert rows == [2]
    alone = generator("a cat", negative="dull", seed=2, steps=1, width=32, height=32)
    assert made.latents is not None and alone.latents is not None
    assert made.latents.values[2:].equal(alone.latents.values)
    rows.clear()
    generator(["a cat", "a dog", "a cat"], negative="a cat", steps=1, width=32, height=32)
    assert rows == [1, 2], "a prompt that is its own negative prompt, and another"


class Copies(TorchDispatchMode):
    """Counts what goes from the CPU to the device. A value asked of a tensor on the device "meta" is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in args if isinstance(one, Tensor)]
        moves = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if moves and isinstance(result, Tensor) and len({one.device for one in [*tensors, result]}) > 1:
            self.counted += 1
        return result


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "dpm_adaptive"])
def test_no_step_waits_for_the_device(name: str) -> None:
    """`dpm_adaptive` must, as it chooses its steps by the picture; noise comes from the CPU, where seeds are alike."""
    x, ready = torch.zeros(1, 4, 8, 8, device=META), expert(Rows())
    denoiser = ready.denoiser(ready.network.to(META), META)
    with Copies() as copies, torch.inference_mode():
        steps = list(walk(SOLVERS[name], denoiser, x, SIGMAS.sigmas, torch.zeros_like))
    assert steps and copies.counted == 0


@pytest.mark.parametrize("make", [unet, k_unet], ids=["unet", "k_unet"])
def test_no_network_waits_for_the_device(make: Any) -> None:
    network = make().bfloat16()
    vector = normal(1, 6) if isinstance(network, KUNet) else None
    told = GuidedConditioning(Conditioning(tokens(1), vector=vector))
    denoiser = Expert(network, precondition.epsilon(SAMPLER.schedule), told).denoiser(network.to(META), META)
    x = torch.zeros(1, 4, 8, 8, device=META)
    with Copies() as copies, torch.inference_mode():
        for sigma in SIGMAS.sigmas[:2]:
            denoiser(x, sigma)
    assert copies.counted == 0


def test_known_regions_and_windows_do_not_wait_either() -> None:
    x = torch.zeros(1, 4, 16, 16, device=META)
    known, ready = KnownRegion(x, x, torch.zeros(1, 1, 16, 16, device=META)), expert(Rows())
    plan = SamplingPlan(SIGMAS, SOLVERS["heun"], torch.zeros_like, Windows(8, 4, 4))
    with hold_denoiser([ready], plan, Runtime(META), unchanged, known) as (denoise, on_step):
        denoise(x, SIGMAS.sigmas[0])
        with Copies() as copies, torch.inference_mode():
            for step in walk(plan.solver, denoise, x, SIGMAS.sigmas, plan.noise):
                on_step(step)
    assert copies.counted == 0


@pytest.mark.parametrize(
    "scheduler",
    [schedulers.EulerDiscreteScheduler, schedulers.PNDMScheduler, schedulers.DPMSolverMultistepScheduler],
    ids=lambda scheduler: scheduler.__name__,
)
def test_a_scheduler_of_the_face_does_not_wait_either(scheduler: Any) -> None:
    made = listed(scheduler(), (4, None, None))
    method, x = made.method(torch.zeros_like, torch.float32), torch.zeros(1, 4, 8, 8, device=META)
    with Copies() as copies:
        for _ in walk(method.solver, lambda x, sigma: x * 0.5, x, method.sigma_schedule.sigmas, method.noise):
            pass
    assert copies.counted == 0


def test_what_an_accelerator_computes_is_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "is_at_hand", lambda output: False)
    check = FiniteCheck()
    for value in (1.0, float("nan"), float("inf")):
        check.see(torch.full((2, 2), value), lambda value=value: NonFinite(f"it was {value}"))
    error = check.settle()
    assert error is not None and str(error) == "it was nan"
    assert check.settle() is None
    with pytest.raises(NonFinite, match=r"^full$"):
        for _ in range(overflow.MAX_PENDING):
            check.see(torch.full((1,), float("nan")), lambda: NonFinite("full"))


def test_an_overflow_is_still_named_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "is_at_hand", lambda output: False)
    network = unet().half()
    network.down_blocks[0].resnets[0].conv1.weight.data *= 60000
    ready = expert(network, dtype=torch.float16)
    with pytest.warns(UserWarning, match=r"down_blocks.0.resnets.0.conv1 .*at step 1, .*denoised again in float32"):
        assert torch.isfinite(run(ready, normal(1, 4, 16, 16))).all()
