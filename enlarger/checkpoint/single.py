"""Reading a whole model from one file, as the original code and later programs write it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from enlarger.checkpoint.build import build
from enlarger.checkpoint.bundled import clip_tokenizer, family_configs
from enlarger.checkpoint.detect import Found, detect
from enlarger.checkpoint.elsewhere import Source, read_elsewhere
from enlarger.checkpoint.families import FAMILIES
from enlarger.checkpoint.files import Weights, open_file
from enlarger.checkpoint.folder import COMPONENTS, CONFIG, INDEX, SCHEDULER, Bundle
from enlarger.checkpoint.measure import measured
from enlarger.checkpoint.names import LAYOUTS, PROJECTING, TOWER, Converted, convert
from enlarger.checkpoint.pickles import PickledWeights
from enlarger.checkpoint.rules import Mapped
from enlarger.errors import CheckpointError, InputError
from enlarger.jsonfile import Json, read_json

OWN = "enlarger.configs"  # the entry of a file's metadata in which our files keep what shapes cannot say
STATED = "modelspec.prediction_type"  # where other programs state what the network predicts
STATEMENTS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
METADATA = "_metadata"  # where the index of a bundle keeps a file's metadata
SHOWN = 10
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "low_res_scheduler")
REPORTED = ("depth_model.",)  # networks that single files hold and that are read from elsewhere


@dataclass(frozen=True)
class _Reading:
    """A file being read."""

    path: Path
    found: Found
    converted: Converted
    base: Mapping[str, Json]
    dtype: torch.dtype | None


def read_single_file(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    allow_pickle: bool = False,
    vae: Source | None = None,
    text_encoder: Source | None = None,
    config: str | Path | None = None,
    ema: bool = False,
) -> Bundle:
    """Read a model like `read_folder` does: same parts, same names.

    `dtype` converts floating weights while reading. `prediction` ("epsilon", "v_prediction") says what the UNet
    predicts where the file cannot; it must be given for Stable Diffusion 2. `allow_pickle` opens a `.ckpt` or `.pth`
    through the restricted reader. `vae` and `text_encoder` (a network, a folder or a file) stand in for parts that the
    file lacks, as the original x2 upscaler's does, or replace its own. `config` is a folder in diffusers' layout whose
    JSON files replace the bundled ones. `ema` takes the averaged copy of the UNet.

    Raises `CheckpointError` saying what the file is instead, what is missing, or which weights differ.
    """
    path = Path(path)
    tensors = open_file(path, allow_pickle=allow_pickle)
    found = detect({name: tensors.shape(name) for name in tensors.names()}, path)
    if found.kind != "model" or found.family is None or found.layout is None:
        advice = f" {found.advice}." if found.advice else " Give it together with the model that it belongs to."
        raise CheckpointError(f"{path}: holds {found.text}, expected a whole model in one file.{advice}")
    stated = _own_configs(tensors, path) | _given_configs(config)
    predicts = _prediction(found, stated, tensors.metadata, prediction, path)
    base = _base(found.family, predicts, stated)
    converted = convert(found.layout, tensors, wrapper=found.wrapper, ema=ema)
    _check_unmapped(path, converted)
    reading = _Reading(path, found, converted, base, dtype)
    read = _networks(reading, {"vae": vae, "text_encoder": text_encoder}, allow_pickle)
    _check_widths(path, read)
    parts: dict[str, Any] = {name: module for name, (module, _) in read.items()}
    if "noise_frequencies" in converted.parts:
        parts["noise_frequencies"] = converted.parts["noise_frequencies"].read("weight", torch.float32)
    parts |= _tokenizers(found, base) | _schedulers(base, predicts)
    return _bundle(reading, parts, {name: config for name, (_, config) in read.items()}, tensors)


def _own_configs(tensors: Weights | PickledWeights, path: Path) -> dict[str, Json]:
    """What our own files say about their parts."""
    text = tensors.metadata.get(OWN)
    if text is None:
        return {}
    try:
        found = json.loads(text)
        if not all(isinstance(value, dict) for value in found.values()):
            raise TypeError("not objects")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata {OWN} is damaged ({error}); fetch the file again.") from error
    return cast("dict[str, Json]", found)


def _given_configs(config: str | Path | None) -> dict[str, Json]:
    """The JSON files of a folder in diffusers' layout."""
    if config is None:
        return {}
    folder = Path(config)
    files = {name: folder / name / (SCHEDULER if "scheduler" in name else CONFIG) for name in PARTS}
    files["model_index"] = folder / INDEX
    read = {name: read_json(file) for name, file in files.items() if file.is_file()}
    if not read:
        raise InputError(
            f"config={config}: found no {INDEX} and no part's {CONFIG}; expected a folder in diffusers' layout."
        )
    return read


def _base(family: str, prediction: str, stated: Mapping[str, Json]) -> dict[str, Json]:
    """The family's configs, with what is stated in their place; which parts there are is the family's to say."""
    known = family_configs("sd2_base" if family == "sd2" and prediction == "epsilon" else family)
    index = {name: value for name, value in stated.get("model_index", {}).items() if not isinstance(value, list)}
    base = {name: stated.get(name, value) for name, value in known.items()}
    return base | {"model_index": known["model_index"] | index}


def _prediction(
    found: Found, configs: Mapping[str, Json], metadata: Mapping[str, str], given: str | None, path: Path
) -> str:
    """What the UNet predicts: as asked for, as the file says of itself, as its family does."""
    if found.family == "x2":
        if given not in (None, "original_sample"):
            raise InputError(f"prediction is {given!r}; the x2 upscaler has none but its own, leave it out.")
        return "original_sample"
    if given is not None and given not in PREDICTIONS:
        raise InputError(f"prediction is {given!r}, expected one of {', '.join(PREDICTIONS)}.")
    kept = configs["scheduler"].get("prediction_type", "epsilon") if "scheduler" in configs else None
    stated = STATEMENTS.get(metadata.get(STATED, ""))
    for each in (given, kept, stated, found.prediction):
        if each is not None:
            return str(each)
    raise InputError(
        f"{path}: holds {found.text}, whose weights do not tell what they predict. Say prediction='epsilon' (512-base "
        "models) or prediction='v_prediction' (768-v models)."
    )


def _check_unmapped(path: Path, converted: Converted) -> None:
    odd = [name for name in converted.unmapped if not name.startswith(REPORTED)]
    if odd:
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        raise CheckpointError(
            f"{path}: {len(odd)} weights belong to none of its networks: {', '.join(odd[:SHOWN])}{more}. "
            "The file is changed or of a newer kind."
        )


def _networks(
    reading: _Reading, given: Mapping[str, Source | None], allow_pickle: bool
) -> dict[str, tuple[nn.Module, Json]]:
    """Each network that the family has, from the file or from where else it was said to be, and its config."""
    read: dict[str, tuple[nn.Module, Json]] = {}
    index, file = reading.base["model_index"], reading.converted.parts
    wanted = [name for name, value in index.items() if isinstance(value, list) and value[1] in COMPONENTS]
    missing = [name for name in wanted if name not in file and given.get(name) is None]
    if missing:
        raise CheckpointError(
            f"{reading.path}: holds {reading.found.text} without {_where_from(reading.found, missing)}"
        )
    for name in sorted(wanted, key=lambda each: each == "unet"):  # the UNet's sizes depend on the text encoders'
        source = given.get(name)
        if source is not None:
            read[name] = read_elsewhere(source, name, reading.base[name], reading.dtype, allow_pickle)
        else:
            read[name] = _network(name, str(index[name][1]), file[name], reading, _pooled(read))
    unused = [name for name, source in given.items() if source is not None and name not in wanted]
    if unused:
        raise InputError(f"{reading.path}: holds {reading.found.text}, which has no {', '.join(unused)}; leave it out.")
    return read


def _network(name: str, kind: str, weights: Mapped, reading: _Reading, pooled: int | None) -> tuple[nn.Module, Json]:
    part = COMPONENTS[kind]
    try:
        shapes = {each: weights.shape(each) for each in weights.names()}
        config = measured(name, shapes, reading.base[name], pooled)
        made = part.read(config)
    except (CheckpointError, InputError) as error:
        raise CheckpointError(f"{reading.path}: {error}") from error

    def make() -> nn.Module:
        try:
            return part.make(made)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(f"{reading.path}: {name} cannot be built with such widths ({error}).") from error

    return build(make, weights, str, reading.dtype), config


def _pooled(read: Mapping[str, tuple[nn.Module, Json]]) -> int | None:
    return cast("Any", read["text_encoder_2"][0]).config.projection if "text_encoder_2" in read else None


def _where_from(found: Found, missing: list[str]) -> str:
    if found.family != "x2":
        return (
            f"{' and '.join(missing)}. Pass {' and '.join(f'{name}=' for name in missing)}, a folder or a file of them."
        )
    places = {
        "vae": "vae=, the autoencoder of Stable Diffusion 1 or 2 (such as vae-ft-mse-840000)",
        "text_encoder": "text_encoder=, CLIP ViT-L/14 (openai/clip-vit-large-patch14, or any Stable Diffusion 1 model)",
    }
    return f"{' and '.join(missing)}, as the original file does. Pass {' and '.join(places[name] for name in missing)}."


def _check_widths(path: Path, read: Mapping[str, tuple[nn.Module, Json]]) -> None:
    """The UNet attends to what the text encoders make."""
    widths = [cast("Any", module).config.width for name, (module, _) in read.items() if name.startswith("text_encoder")]
    context = cast("Any", read["unet"][0]).config.context_channels
    if sum(widths) != context:
        raise CheckpointError(
            f"{path}: its UNet reads text of width {context}, its text encoders make {' + '.join(map(str, widths))}; "
            "bring parts of one model together."
        )


def _tokenizers(found: Found, base: Mapping[str, Json]) -> dict[str, Any]:
    """CLIP's tokenizer for each text encoder; open_clip's models pad with "!"."""
    layout = LAYOUTS[FAMILIES[str(found.family)].layout]
    made: dict[str, Any] = {}
    for name in base:
        if name.startswith("text_encoder"):
            padded = name in layout and layout[name].kind in (TOWER, PROJECTING)
            made[name.replace("text_encoder", "tokenizer")] = clip_tokenizer("!" if padded else "<|endoftext|>")
    return made


def _schedulers(base: Mapping[str, Json], prediction: str) -> dict[str, Json]:
    found = {name: dict(base[name]) for name in ("scheduler", "low_res_scheduler") if name in base}
    if found["scheduler"].get("prediction_type", "epsilon") != prediction:
        found["scheduler"]["prediction_type"] = prediction
    return found


def _bundle(
    reading: _Reading, parts: Mapping[str, Any], configs: Mapping[str, Json], tensors: Weights | PickledWeights
) -> Bundle:
    index = dict(reading.base["model_index"])
    kept = {name: value for name, value in tensors.metadata.items() if name not in (OWN, "format")}
    index |= {METADATA: kept} if kept else {}
    index["scheduler"] = ["diffusers", str(parts["scheduler"].get("_class_name"))]
    skipped = ("depth_estimator",) if reading.converted.unmapped else ()
    return Bundle(reading.path, index, {name: parts[name] for name in sorted(parts)}, dict(configs), skipped)
