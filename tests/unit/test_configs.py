"""Every official config is accepted, means what it means, and comes back equal; what we do not run is refused."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from enlarger.checkpoint.config import network_configs, schedulers
from enlarger.diffusion.sampler import Sampler
from enlarger.errors import CheckpointError, EnlargerError, Unsupported
from enlarger.nn.autoencoder import AutoencoderConfig
from enlarger.nn.clip_text import ClipTextConfig
from enlarger.nn.k_unet import KStage, KUNetConfig
from enlarger.nn.unet import Stage, UNetConfig
from enlarger.nn.upscale_net import UpscaleNetConfig
from tests.support.clip_files import CONFIGS
from tests.support.close import assert_close

REPOSITORIES = sorted(path.name for path in CONFIGS.iterdir())


def files(pattern: str) -> list[Path]:
    return sorted(CONFIGS.glob(pattern))


def load(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def identify(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_all_repositories_are_here() -> None:
    assert len(REPOSITORIES) == 13 and len(files("*/unet.json")) == 13


@pytest.mark.parametrize("path", files("*/unet.json"), ids=identify)
def test_unets_come_back_equal(path: Path) -> None:
    found = network_configs.unet_config(json.loads(path.read_text()))
    back = network_configs.k_unet_json(found) if isinstance(found, KUNetConfig) else network_configs.unet_json(found)
    assert network_configs.unet_config(json.loads(json.dumps(back))) == found


@pytest.mark.parametrize("path", files("*/vae*.json"), ids=identify)
def test_autoencoders_come_back_equal(path: Path) -> None:
    found = network_configs.autoencoder_config(json.loads(path.read_text()))
    assert network_configs.autoencoder_config(json.loads(json.dumps(network_configs.autoencoder_json(found)))) == found


@pytest.mark.parametrize("path", files("*/text_encoder*.json"), ids=identify)
def test_text_encoders_come_back_equal(path: Path) -> None:
    config = json.loads(path.read_text())
    projects = config["architectures"] == ["CLIPTextModelWithProjection"]
    read = network_configs.clip_projection_config if projects else network_configs.clip_text_config
    found = read(config)
    back = network_configs.clip_text_json(found)
    assert read(back) == found and back["architectures"] == config["architectures"]
    assert found.eos_token_id is None and found.max_positions == 77


@pytest.mark.parametrize("path", files("*/*scheduler.json"), ids=identify)
def test_schedules_are_read(path: Path) -> None:
    config = json.loads(path.read_text())
    found = schedulers.sampler_from_config(config)
    assert found.steps_offset == config.get("steps_offset", 0)
    top = 36.9119239 if config["beta_end"] == 0.02 else 14.6146466
    assert abs(float(found.schedule.sigmas[-1]) - top) < 1e-5


def test_what_the_configs_mean() -> None:
    sd1 = UNetConfig(4, 4, (Stage(320, 2, 1), Stage(640, 2, 1), Stage(1280, 2, 1), Stage(1280, 2)), 1, 8, 768, False)
    assert network_configs.unet_config(load("stable-diffusion-v1-5/unet.json")) == sd1
    assert network_configs.unet_config(load("stable-diffusion-inpainting/unet.json")) == replace(sd1, in_channels=9)
    x2 = network_configs.unet_config(load("sd-x2-latent-upscaler/unet.json"))
    stages = (
        KStage(384, 4, False, False),
        KStage(384, 4, True, False),
        KStage(768, 4, True, False),
        KStage(768, 4, True, True),
    )
    assert x2 == KUNetConfig(8, 5, stages, 768, 64, 896)
    x4 = network_configs.unet_config(load("stable-diffusion-x4-upscaler/unet.json"))
    assert (
        isinstance(x4, UNetConfig)
        and x4.num_class_embeds == 1000
        and [s.only_cross_attention for s in x4.stages] == [True] * 3 + [False]
    )
    xl = network_configs.unet_config(load("stable-diffusion-xl-base-1.0/unet.json"))
    assert (
        isinstance(xl, UNetConfig)
        and [s.transformer_depth for s in xl.stages] == [0, 2, 10]
        and xl.mid_transformer_depth == 10
    )
    assert (xl.vector_channels, xl.time_id_channels, xl.mid_heads) == (2816, 256, 20)
    assert network_configs.autoencoder_config(load("stable-diffusion-v1-5/vae.json")).scaling_factor == 0.18215
    assert network_configs.autoencoder_config(load("stable-diffusion-x4-upscaler/vae.json")).channels == (128, 256, 512)
    bigg = network_configs.clip_projection_config(load("stable-diffusion-xl-base-1.0/text_encoder_2.json"))
    assert bigg == ClipTextConfig(1280, 32, 20, 5120, "gelu", projection_dim=1280)
    assert network_configs.clip_text_config(load("stable-diffusion-2/text_encoder.json")).projection_dim is None


def test_what_the_schedulers_mean() -> None:
    x2 = schedulers.sampler_from_config(load("sd-x2-latent-upscaler/scheduler.json"))
    assert (x2.solver, x2.prediction, x2.timestep_spacing, x2.variance_preserving) == (
        "euler",
        "sample",
        "log_linear",
        False,
    )
    sd2 = schedulers.sampler_from_config(load("stable-diffusion-2/scheduler.json"))
    assert (sd2.solver, sd2.prediction, sd2.timestep_spacing, sd2.variance_preserving) == (
        "ddim",
        "v_prediction",
        "leading",
        True,
    )
    silent = schedulers.sampler_from_config({"_class_name": "EulerDiscreteScheduler"})
    assert silent.timestep_spacing == "linspace" and silent.prediction == "epsilon"


def scheduler(name: str, **settings: Any) -> Sampler:
    return schedulers.sampler_from_config({"_class_name": name, **settings})


def test_which_solver_stands_for_a_class() -> None:
    multistep, least = "DPMSolverMultistepScheduler", 0.0100005
    assert scheduler("PNDMScheduler").solver == "pndm"
    assert scheduler("PNDMScheduler", skip_prk_steps=True).solver == "plms"
    assert (
        scheduler(multistep).solver_options == {"heun": False, "lower_order_final_sigma": 0.0}
        and scheduler(multistep).variance_preserving
    )
    assert scheduler(multistep, lower_order_final=False).solver_options["lower_order_final_sigma"] is None
    assert scheduler(multistep, final_sigmas_type="sigma_min").solver_options[
        "lower_order_final_sigma"
    ] == pytest.approx(least, abs=1e-6)
    assert scheduler(multistep, algorithm_type="sde-dpmsolver++").solver == "dpmpp_2m_sde"
    assert scheduler(multistep, algorithm_type="sde-dpmsolver++", solver_order=1).solver == "euler_ancestral"
    third = scheduler(multistep, solver_order=3, solver_type="heun")
    assert third.solver == "dpmpp_3m_sde" and third.solver_options == {
        "eta": 0.0,
        "heun": True,
        "lower_order_final_sigma": 0.0,
    }
    single = scheduler("DPMSolverSinglestepScheduler", timestep_spacing="leading")
    assert single.timestep_spacing == "linspace" and single.solver_options["lower_order_final"] is False
    assert scheduler("UniPCMultistepScheduler", solver_type="bh1").solver_options["bh1"]
    stale = scheduler("UniPCMultistepScheduler", solver_type="midpoint")  # kept from DPM-Solver's file
    assert stale.solver_options["bh1"] is False
    assert scheduler("KDPM2DiscreteScheduler").schedule.sigmas[-1] < 30 < scheduler(multistep).schedule.sigmas[-1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DDPMScheduler", {"variance_type": "fixed_large"}, "variance_type is 'fixed_large'; supported: 'fixed_small'"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order is 4; supported: 2, 1, 3"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type is 'dpmsolver'; supported:"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            ".*the wrong sign in diffusers; set solver_order=2, or name the solver dpmpp_3m_sde",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"final_sigmas_type": "sigma_min", "euler_at_final": True},
            "euler_at_final is True; set final_sigmas_type='zero', which does the same",
        ),
        (
            "UniPCMultistepScheduler",
            {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
            ".*repeats the last level of Karras or exponential sigmas; set final_sigmas_type='zero'",
        ),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas is True; supported: False"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1; supported: -inf"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, r"disable_corrector is \[0\]; supported: \[\]"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0 is False; supported: True"),
        (
            "DPMSolverSDEScheduler",
            {"noise_sampler_seed": 0},
            "noise_sampler_seed is 0, but noise comes from the generators of the run; give those a seed",
        ),
    ],
)
def test_what_no_solver_does(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=f"{name}: {message}"):
        scheduler(name, **settings)


def test_zero_terminal_schedules_equal_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
    config = load("stable-diffusion-xl-base-1.0/scheduler.json") | {"rescale_betas_zero_snr": True}
    theirs = diffusers.EulerDiscreteScheduler.from_config(config)
    expected = theirs.alphas_cumprod.double()
    found = 1 / (schedulers.sampler_from_config(config).schedule.sigmas ** 2 + 1)
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "mish"}, "act_fn is 'mish'; supported: 'silu'"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'; supported: None"),
        ({"addition_embed_type": "image"}, "addition_embed_type is 'image'; supported: None, 'text_time'"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type is 'UNetMidBlock2D'"),
        (
            {"down_block_types": ["AttnDownBlock2D"] * 4},
            "down_block_types has 'AttnDownBlock2D'; supported: 'DownBlock2D'",
        ),
        ({"up_block_types": ["UpBlock2D"] * 4}, "do not mirror down_block_types"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types lists 1 blocks, expected 4, one per level"),
        ({"transformer_layers_per_block": [1, [2, 2], 1, 1]}, "transformer_layers_per_block is"),
        ({"attention_head_dim": [8, 8]}, r"attention_head_dim is \[8, 8\], expected one value or 4"),
        ({"block_out_channels": None}, "block_out_channels is .*expected a list of whole numbers"),
        ({"block_out_channels": "wide"}, "block_out_channels is 'wide', expected a list"),
        ({"cross_attention_dim": None}, "cross_attention_dim is None, expected a whole number"),
        ({"motion_modules": 3}, "unknown settings motion_modules"),
    ],
)
def test_what_we_do_not_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises((Unsupported, CheckpointError), match=f"UNet2DConditionModel: .*{message}"):
        network_configs.unet_config(load("stable-diffusion-v1-5/unet.json") | change)


def test_settings_without_effect_pass() -> None:
    config = load("stable-diffusion-v1-5/unet.json")
    extra = {"motion_modules": None, "future_flag": False, "_use_default_values": ["x"], "freq_shift": 0.0}
    assert network_configs.unet_config(config | extra) == network_configs.unet_config(config)


def test_other_refusals() -> None:
    with pytest.raises(Unsupported, match=r"AutoencoderKL: shift_factor is 0.1; supported: None"):
        network_configs.autoencoder_config(load("stable-diffusion-v1-5/vae.json") | {"shift_factor": 0.1})
    with pytest.raises(Unsupported, match="use_quant_conv is False; supported: True"):
        network_configs.autoencoder_config(load("stable-diffusion-v1-5/vae.json") | {"use_quant_conv": False})
    with pytest.raises(Unsupported, match="CLIPTextModel: hidden_act is 'relu'; supported: 'quick_gelu', 'gelu'"):
        network_configs.clip_text_config(load("stable-diffusion-2/text_encoder.json") | {"hidden_act": "relu"})
    with pytest.raises(Unsupported, match="scheduler LCMScheduler: no solver here stands for it; expected one of DDIM"):
        schedulers.sampler_from_config({"_class_name": "LCMScheduler"})
    with pytest.raises(Unsupported, match="trained_betas"):
        schedulers.sampler_from_config({"_class_name": "DDIMScheduler", "trained_betas": [0.1]})
    with pytest.raises(Unsupported, match="the middle block differs from the last level"):
        stages = (Stage(32, 1, 1, 4), Stage(32, 1, 2, 4))
        network_configs.unet_json(UNetConfig(4, 4, stages, 1, 4, 32, False))
    with pytest.raises(Unsupported, match="K blocks have self-attention at the last level"):
        network_configs.k_unet_json(KUNetConfig(8, 5, (KStage(32, 1, True, True), KStage(32, 1, True, True)), 32))


def test_zero_and_false_are_values() -> None:
    vae = network_configs.autoencoder_config(load("stable-diffusion-xl-base-1.0/vae.json") | {"force_upcast": False})
    assert vae.force_upcast is False
    statistics = {"latents_mean": [0.0, 1.0, 0.0, 0.0], "latents_std": [1.0, 1, 1, 2]}
    found = network_configs.autoencoder_config(load("stable-diffusion-xl-base-1.0/vae.json") | statistics)
    assert found.latents_mean == (0.0, 1.0, 0.0, 0.0) and found.latents_std == (1.0, 1.0, 1.0, 2.0)
    assert network_configs.autoencoder_config(network_configs.autoencoder_json(found)) == found
    end = ClipTextConfig(32, 1, 4, 64, "gelu", eos_token_id=49407)
    assert network_configs.clip_text_config(network_configs.clip_text_json(end)) == end


def test_our_own_configs_come_back_equal() -> None:
    config = UpscaleNetConfig()
    assert (
        network_configs.dataclass_reader(UpscaleNetConfig)(
            json.loads(json.dumps(network_configs.dataclass_json(config)))
        )
        == config
    )
    read = network_configs.dataclass_reader(AutoencoderConfig)
    with pytest.raises(CheckpointError, match=r"AutoencoderConfig: config does not fit .*layers"):
        read({"channels": [8], "latent_channels": 4, "scaling_factor": 1})
    with pytest.raises(CheckpointError, match="found '2', expected a number"):
        read({"channels": [8], "layers_per_block": "2", "latent_channels": 4, "scaling_factor": 1})


@pytest.mark.parametrize("value", [None, 0, 1.5, "x", [], [1], {}, True])
def test_wrong_types_are_our_errors(value: Any) -> None:
    readers = {
        "stable-diffusion-xl-base-1.0/unet": network_configs.unet_config,
        "sd-x2-latent-upscaler/unet": network_configs.unet_config,
        "stable-diffusion-x4-upscaler/vae": network_configs.autoencoder_config,
        "stable-diffusion-xl-base-1.0/text_encoder_2": network_configs.clip_projection_config,
        "stable-diffusion-xl-base-1.0/scheduler": schedulers.sampler_from_config,
    }
    for name, read in readers.items():
        config = load(f"{name}.json") | ({"latents_mean": None} if "vae" in name else {})
        for key in config:
            with suppress(EnlargerError):
                read(config | {key: value})


def test_default_types_survive() -> None:
    assert schedulers.sampler_from_config({"_class_name": "DDIMScheduler"}).schedule.sigmas.dtype == torch.float64
