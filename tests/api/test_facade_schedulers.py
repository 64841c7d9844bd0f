"""Schedulers by diffusers' names: the same defaults, and the same rules of what a config carries over."""

import inspect
import json
import random
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import enlarger.diffusers.schedulers as ours_room
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES
from enlarger.errors import CheckpointError
from tests.support import scheduler_sweep as sweep
from tests.support import tiny
from tests.support.close import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # NumPy's, of diffusers' KDPM2

SD1 = {"_class_name": "PNDMScheduler", **tiny.SD1_SCHEDULER}
SDXL = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1}


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_defaults_are_diffusers(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    expected = {key: p.default for key, p in parameters.items() if key != "self"}
    assert dict(getattr(ours_room, name).DEFAULTS) == expected
    assert list(getattr(ours_room, name).DEFAULTS) == list(expected)


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
@pytest.mark.parametrize("file", [SD1, SDXL, tiny.X2_SCHEDULER], ids=["sd1", "sdxl", "x2"])
def test_configs_carry_over_as_in_diffusers(name: str, file: dict[str, Any]) -> None:
    others = ["EulerDiscreteScheduler"] if "KDPM2" in name else ["PNDMScheduler", "EulerDiscreteScheduler"]  # slow
    for other in others + ["UniPCMultistepScheduler"] * (file is SD1):
        carry_over(name, other, file)
        carry_over(other, name, file)


def carry_over(first: str, second: str, file: dict[str, Any]) -> None:
    def chain(room: Any) -> Any:
        return getattr(room, second).from_config(getattr(room, first).from_config(file).config).config

    found, expected = chain(ours_room), chain(diffusers)
    for key in SCHEDULER_CLASSES[second].DEFAULTS:
        assert found[key] == expected[key] and getattr(found, key) == found[key], key


def test_the_trap_of_spacing() -> None:
    pndm = ours_room.PNDMScheduler.from_config(SD1)
    assert pndm.config.timestep_spacing == "leading"
    assert ours_room.EulerDiscreteScheduler.from_config(pndm.config).config.timestep_spacing == "linspace"
    xl = ours_room.EulerDiscreteScheduler.from_config(SDXL)
    assert ours_room.DDIMScheduler.from_config(xl.config).config.timestep_spacing == "leading"


def test_configs_of_diffusers_are_read() -> None:
    theirs = diffusers.PNDMScheduler.from_config(SD1)
    found = ours_room.EulerDiscreteScheduler.from_config(theirs.config)
    assert found.config.timestep_spacing == "linspace" and found.config.beta_end == 0.012


def test_settings_by_position_name_and_change() -> None:
    made = ours_room.EulerDiscreteScheduler(1000, 0.00085, beta_end=0.012)
    assert (made.config.beta_start, made.config["beta_end"], made.config.get("nothing")) == (0.00085, 0.012, None)
    assert made.with_config(use_karras_sigmas=True).config.use_karras_sigmas and not made.config.use_karras_sigmas
    assert made.to_dict() == {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    assert (
        "EulerDiscreteScheduler({" in repr(made) and len(made.config) == len(made.DEFAULTS) + 2
    )  # as diffusers: the class, and what was not stated
    with pytest.raises(AttributeError, match="the config of EulerDiscreteScheduler has no 'order'"):
        _ = made.config.order
    with pytest.raises(TypeError, match=r"PNDMScheduler has no \['use_karras_sigmas'\]"):
        ours_room.PNDMScheduler(use_karras_sigmas=True)


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_files_are_read_by_diffusers(name: str, tmp_path: Path) -> None:
    changes = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "use_karras_sigmas": True}
    made = SCHEDULER_CLASSES[name](
        **{key: value for key, value in changes.items() if key in SCHEDULER_CLASSES[name].DEFAULTS}
    )
    (tmp_path / "scheduler_config.json").write_text(json.dumps(made.to_dict()))
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    for key in made.DEFAULTS:
        assert theirs.config[key] == made.config[key], key
    assert SCHEDULER_CLASSES[name].from_pretrained(tmp_path).to_dict() == made.to_dict()
    saved = tmp_path / "theirs"
    theirs.save_pretrained(saved)  # all settings, an infinite one among them
    expected = {**made.config, **_extra(saved, made.config)}
    del expected["_use_default_values"]  # in their file everything is stated
    assert dict(SCHEDULER_CLASSES[name].from_pretrained(saved).config) == expected


def _extra(folder: Path, known: Any) -> dict[str, Any]:
    """What a file of diffusers has beyond the settings."""
    found = json.loads((folder / "scheduler_config.json").read_text())
    return {key: value for key, value in found.items() if key not in known and not key.startswith("_")}


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_trajectories_are_diffusers(name: str) -> None:
    """A short form of scripts/scheduler-sweep: random settings of each class, whole trajectories."""
    draw = random.Random(name)
    cases = [case for _ in range(8) if (case := sweep.random_case(draw, name)).steps <= 7]
    found = {case: sweep.compare(case) for case in cases}
    wrong = {case: said for case, said in found.items() if said[0] in ("different", "refused")}
    assert not wrong and any(said[0] in ("equal", "rounded") for said in found.values())


def test_a_step_needs_timesteps_first() -> None:
    x = torch.zeros(1, 4, 2, 2)
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler"):
        with pytest.raises(ValueError, match="call set_timesteps first"):
            getattr(ours_room, name)().step(x, 1, x)
    euler = ours_room.EulerDiscreteScheduler()
    euler.set_timesteps(3)
    with pytest.raises(ValueError, match="not a whole number"):
        euler.step(x, 1, x)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_noise_is_added_as_in_diffusers(name: str) -> None:
    clean, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    made, theirs = getattr(ours_room, name)(), getattr(diffusers, name)()
    for scheduler in (made, theirs):
        scheduler.set_timesteps(5)
    times = theirs.timesteps[1:3]
    assert_close(made.add_noise(clean, noise, times), theirs.add_noise(clean, noise, times), 1e-5)
    if hasattr(theirs, "get_velocity"):
        assert_close(made.get_velocity(clean, noise, times), theirs.get_velocity(clean, noise, times), 1e-6)


def test_from_folders(tmp_path: Path) -> None:
    found = ours_room.HeunDiscreteScheduler.from_pretrained(tiny.x2_folder(), subfolder="scheduler")
    assert found.config.beta_start == 0.00085 and found.config.interpolation_type == "log_linear"  # kept for the next
    with pytest.raises(CheckpointError, match=r"no scheduler_config.json; give the folder that has it"):
        ours_room.HeunDiscreteScheduler.from_pretrained(tmp_path)
