"""What the official files of a family hold: names and shapes, from networks built without memory."""

from collections.abc import Iterator, Mapping

import torch

from enlarger.checkpoint.components import COMPONENT_CLASSES
from enlarger.checkpoint.config.bundled_configs import family_configs
from enlarger.checkpoint.families import FAMILIES, describe_family
from enlarger.checkpoint.single_file.key_mapping import LAYOUTS, original_shapes
from enlarger.checkpoint.single_file.key_rules import Shape
from enlarger.strict_json import Json


def network_shapes(class_name: str, config: Json) -> dict[str, Shape]:
    """Our names and shapes of the network that a config describes; `class_name` is that in model_index.json."""
    component = COMPONENT_CLASSES[class_name]
    with torch.device("meta"):
        module = component.create(component.read_config(config))
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def family_shapes(family: str) -> dict[str, dict[str, Shape]]:
    """Our names and shapes of each network in a family's single file."""
    family_json = family_configs(family)
    component_names = (name for name in LAYOUTS[FAMILIES[family].layout] if name in family_json)
    shapes = {name: network_shapes(family_json["model_index"][name][1], family_json[name]) for name in component_names}
    return shapes | ({"noise_frequencies": {"weight": (64, 1)}} if family == "x2" else {})


def original_family_shapes(family: str) -> Mapping[str, Shape]:
    """The original names and shapes of a family's networks in a single file."""
    layout, original = FAMILIES[family].layout, dict[str, Shape]()
    for component, shapes in family_shapes(family).items():
        original |= original_shapes(layout, component, shapes)
    return original


def component_shapes() -> Iterator[tuple[str, Mapping[str, Shape]]]:
    """Networks that may lie in a file alone, with what they are called."""
    shapes = family_shapes("sd1")
    yield f"the UNet of {describe_family('sd1')}", shapes["unet"]
    yield "an autoencoder of Stable Diffusion", shapes["vae"]
    yield "an original autoencoder of Stable Diffusion", original_shapes("vae", "vae", shapes["vae"])
    yield "a CLIP text encoder", {f"text_model.{name}": shape for name, shape in shapes["text_encoder"].items()}
