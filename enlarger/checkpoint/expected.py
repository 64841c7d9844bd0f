"""What the official files of a family hold: names and shapes, from networks built without memory."""

from collections.abc import Iterator, Mapping

import torch

from enlarger.checkpoint.bundled import family_configs
from enlarger.checkpoint.families import FAMILIES, described
from enlarger.checkpoint.folder import COMPONENTS
from enlarger.checkpoint.names import LAYOUTS, original_shapes
from enlarger.checkpoint.rules import Shape
from enlarger.jsonfile import Json


def network_shapes(kind: str, config: Json) -> dict[str, Shape]:
    """Our names and shapes of the network that a config describes; `kind` is its class in model_index.json."""
    part = COMPONENTS[kind]
    with torch.device("meta"):
        module = part.make(part.read(config))
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def family_shapes(family: str) -> dict[str, dict[str, Shape]]:
    """Our names and shapes of each network in a family's single file."""
    found = family_configs(family)
    parts = (name for name in LAYOUTS[FAMILIES[family].layout] if name in found)
    made = {name: network_shapes(found["model_index"][name][1], found[name]) for name in parts}
    return made | ({"noise_frequencies": {"weight": (64, 1)}} if family == "x2" else {})


def original_model(family: str) -> Mapping[str, Shape]:
    """The original names and shapes of a family's networks in a single file."""
    layout, found = FAMILIES[family].layout, dict[str, Shape]()
    for component, shapes in family_shapes(family).items():
        found |= original_shapes(layout, component, shapes)
    return found


def part_shapes() -> Iterator[tuple[str, Mapping[str, Shape]]]:
    """Networks that may lie in a file alone, with what they are called."""
    parts = family_shapes("sd1")
    yield f"the UNet of {described('sd1')}", parts["unet"]
    yield "an autoencoder of Stable Diffusion", parts["vae"]
    yield "an original autoencoder of Stable Diffusion", original_shapes("vae", "vae", parts["vae"])
    yield "a CLIP text encoder", {f"text_model.{name}": shape for name, shape in parts["text_encoder"].items()}
