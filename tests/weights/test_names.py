"""Every row of the tables of original single files is covered exactly once by the rules, both ways, shapes too."""

from collections import Counter, defaultdict

import pytest
import torch
from torch import Tensor

from enlarger.checkpoint.single_file.key_mapping import LAYOUTS as RULES
from enlarger.checkpoint.single_file.key_mapping import (
    convert_from_original,
    convert_to_original,
    original_key_sources,
    original_shapes,
)
from enlarger.checkpoint.single_file.key_rules import KeySource, diffusers_shape
from enlarger.checkpoint.single_file.reference_shapes import original_family_shapes
from enlarger.errors import CheckpointError
from tests.support.random_weights import normal
from tests.support.single import LAYOUTS, InMemory, original_shapes_of, shape_of, tables

LOST = ("logit_scale", "model_ema.", ".resblocks.23.", "model.text_projection")  # what a bundle does not hold


def steps(place: KeySource, shape: tuple[int, ...]) -> str:
    """A place in the words of the tables."""
    rows = shape[0] // place.num_chunks if place.num_chunks > 1 else 0
    part = f"rows {place.chunk * rows}:{(place.chunk + 1) * rows}" if rows else ""
    if "attn.in_proj" not in place.key and rows:
        part = f"chunk[{place.chunk}/{place.num_chunks}] dim0"
    form = "transpose" if place.transform == "transposed" else ""
    if diffusers_shape(KeySource(place.key, transform=place.transform), shape) != shape and not form:
        form = "squeeze trailing 1x1"
    return "; ".join(filter(None, (part, form))) or "-"


def test_every_layout_has_its_table() -> None:
    assert {layout for _, layout in LAYOUTS.values()} == set(RULES) - {"k_unet", "text", "text_2"}
    assert sum(map(len, tables().values())) == 646 + 248 + 2 * 1145 + 3 * 1334 + 1299 + 2643 + 1986


@pytest.mark.parametrize("table", LAYOUTS)
def test_every_row_from_the_original(table: str) -> None:
    rows, shapes = tables()[table], original_shapes_of(table)
    found = convert_from_original(LAYOUTS[table][1], InMemory(shapes))
    reported = Counter[tuple[str, ...]]()
    for component, weights in found.components.items():
        for name in weights.keys():
            place = weights.key_sources[name]
            target = "x".join(map(str, weights.shape(name)))
            reported[component, place.key, steps(place, shapes[place.key]), name, target] += 1
    reported.update(("", name, "dropped", "", "") for name in found.ignored_keys)
    wanted = Counter[tuple[str, ...]]()
    for row in rows:
        key, target = row["original_key"], row["target_key"]
        if key == "low_res_noise_embed.weight":  # the table drops what diffusers has no place for
            wanted["noise_frequencies", key, "-", "weight", "64x1"] += 1
        elif target:
            name = target.removeprefix("text_model.")
            wanted[row["component"], key, row["transform"], name, row["target_shape"]] += 1
        else:
            wanted["", key, "dropped", "", ""] += 1
    assert reported == wanted and set(reported.values()) == {1}
    assert found.unexpected_keys == ()


@pytest.mark.parametrize("table", LAYOUTS)
def test_every_row_back(table: str) -> None:
    layout, parts = LAYOUTS[table][1], defaultdict[str, dict[str, tuple[int, ...]]](dict)
    for row in tables()[table]:
        if row["target_key"]:
            name = row["target_key"].removeprefix("text_model.")
            parts[row["component"]][name] = shape_of(row["target_shape"])
    for component, shapes in parts.items():
        places = original_key_sources(layout, component, shapes)
        rows = {
            (row["original_key"], row["target_key"].removeprefix("text_model."))
            for row in tables()[table]
            if row["target_key"] and row["component"] == component
        }
        assert {(place.key, name) for name, place in places.items()} == rows
        wanted = {row["original_key"]: shape_of(row["original_shape"]) for row in tables()[table] if row["target_key"]}
        found = original_shapes(layout, component, shapes)
        assert found == {name: shape for name, shape in wanted.items() if name in found}
        assert len(found) == len({name for name, _ in rows})


@pytest.mark.parametrize("table", [table for table, (family, _) in LAYOUTS.items() if family])
def test_official_configs_make_the_official_files(table: str) -> None:
    """Full-size networks without memory, from the bundled configs, have exactly the table's weights."""
    family = LAYOUTS[table][0]
    assert family is not None
    wanted = {
        row["original_key"]: shape_of(row["original_shape"])
        for row in tables()[table]
        if row["target_key"] or row["original_key"].startswith("low_res")
    }
    assert original_family_shapes(family) == wanted


def small(table: str) -> dict[str, Tensor]:
    """A file of a table's keys whose tensors have a few numbers each, but splits and transposes still show."""
    made: dict[str, Tensor] = {}
    for i, (name, shape) in enumerate(original_shapes_of(table).items()):
        sides = [6 if axis == 0 else 1 if side == 1 else 2 for axis, side in enumerate(shape)]
        sides = [6, 6] if name.endswith("text_projection") else sides
        sides = [sides[0], 1] if name in ("low_res_noise_embed.weight", "timestep_embed.weight") else sides
        made[name] = normal(*sides, seed=i)
    return made


@pytest.mark.parametrize("table", LAYOUTS)
def test_values_round_trip(table: str) -> None:
    layout, file = LAYOUTS[table][1], small(table)
    source = InMemory(file)
    found = convert_from_original(layout, source)
    assert source.reads == [], "nothing is read before it is asked for"
    back: dict[str, Tensor] = {}
    for component, weights in found.components.items():
        ours = {name: weights.get_tensor(name) for name in weights.keys()}
        assert all(tensor.shape == weights.shape(name) for name, tensor in ours.items())
        assert all(t.is_contiguous() and t.untyped_storage().nbytes() == t.nbytes for t in ours.values())
        back |= convert_to_original(layout, component, ours)
    assert all(tensor.equal(file[name]) for name, tensor in back.items())
    missing = file.keys() - back.keys()
    assert missing == set(found.ignored_keys), "all but what is no weight comes back"


K_QKV = "inner_model.u_net.d_blocks.3.5.qkv_proj.weight"
OPEN_CLIP = "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight"
KINDS = {  # a weight of each kind of rule: its table, and what it is of the file
    "encoder.layers.3.self_attn.k_proj.weight": ("sd2", lambda file: file[OPEN_CLIP][2:4]),
    "text_projection.weight": ("sdxl_base", lambda file: file["conditioner.embedders.1.model.text_projection"].T),
    "decoder.mid_block.attentions.0.to_q.weight": (
        "sd1", lambda file: file["first_stage_model.decoder.mid.attn_1.q.weight"][:, :, 0, 0]
    ),
    "down_blocks.3.attentions.1.attn1.to_v.weight": ("k_upscaler_unet", lambda file: file[K_QKV][4:, :, 0, 0]),
    "time_proj.weight": ("k_upscaler_unet", lambda file: file["inner_model.timestep_embed.weight"][:, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_one_weight_of_each_kind(name: str) -> None:
    table, expected = KINDS[name]
    file = small(table)
    parts = convert_from_original(LAYOUTS[table][1], InMemory(file)).components.values()
    weights = next(part for part in parts if name in part.keys())
    assert weights.get_tensor(name).equal(expected(file))
    assert weights.get_tensor(name, torch.float64).dtype == torch.float64


def test_the_averaged_copy() -> None:
    file = small("sd1")
    prefix = "model.diffusion_model."
    copies = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor + 1
        for name, tensor in file.items()
        if name.startswith(prefix)
    }
    whole = InMemory(file | copies)
    trained, averaged = convert_from_original("sd1", whole), convert_from_original("sd1", whole, ema=True)
    assert trained.unexpected_keys == averaged.unexpected_keys == () and set(copies) <= set(trained.ignored_keys)
    name = "up_blocks.1.attentions.2.proj_in.weight"
    assert averaged.components["unet"].get_tensor(name).equal(trained.components["unet"].get_tensor(name) + 1)
    vae = "decoder.conv_in.weight"
    assert averaged.components["vae"].get_tensor(vae).equal(trained.components["vae"].get_tensor(vae))
    with pytest.raises(
        CheckpointError, match=r"no averaged weights: 686 of 686 are missing, .* read it with ema=False"
    ):
        convert_from_original("sd1", InMemory(file), ema=True)


def test_a_text_encoder_without_its_prefix() -> None:
    """As in files of programs that were written for transformers' newer releases."""
    file = small("sd1")
    bare = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in file.items()}
    one, other = (convert_from_original("sd1", InMemory(each)) for each in (file, bare))
    name = "encoder.layers.0.mlp.fc1.weight"
    assert one.components["text_encoder"].get_tensor(name).equal(other.components["text_encoder"].get_tensor(name))
    assert other.unexpected_keys == ()


def test_depth_network_is_reported_by_name() -> None:
    file = small("sd2_depth") | {"depth_model.model.pretrained.model.cls_token": torch.zeros(1)}
    assert convert_from_original("sd2", InMemory(file)).extra_keys == ("depth_model.model.pretrained.model.cls_token",)


def test_errors() -> None:
    file = small("ldm_vae_only")
    with pytest.raises(CheckpointError, match=r"vae: encoder.conv_middle.weight has no place in an original vae file"):
        convert_to_original("vae", "vae", {"encoder.conv_middle.weight": torch.zeros(1)})
    ours = {
        "encoder.layers.0.layer_norm1.weight": torch.zeros(1),
        "encoder.layers.0.self_attn.q_proj.bias": torch.zeros(2),
    }
    with pytest.raises(CheckpointError, match=r"in_proj_bias needs 3 weights, found 1"):
        convert_to_original("sd2", "text_encoder", ours)
    odd = convert_from_original(
        "sd2",
        InMemory(
            {
                "cond_stage_model.model.transformer.resblocks.0.ln_1.weight": torch.zeros(1),
                "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": torch.zeros(5),
            }
        ),
    )
    with pytest.raises(CheckpointError, match=r"in_proj_bias has shape \(5,\), expected a multiple of 3 rows"):
        odd.components["text_encoder"].shape("encoder.layers.0.self_attn.q_proj.bias")
    assert len(convert_from_original("vae", InMemory(file)).components["vae"].keys()) == 248
