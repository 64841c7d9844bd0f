"""LoRAs and textual inversions under diffusers' method names; the pipeline's parts are replaced, never changed."""

import logging
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import LORA_COMPONENTS, Lora, UnfitLora, apply_loras
from enlarger.checkpoint.adapters.textual_inversion import (
    TextualInversion,
    add_textual_inversion,
    read_textual_inversion,
)
from enlarger.checkpoint.adapters.weight_deltas import WeightDelta
from enlarger.diffusers.call.arguments import ArgumentError, with_value_errors
from enlarger.diffusers.loaders.adapter_files import WeightsSource, load_lora, resolve_source
from enlarger.diffusers.loaders.lora_files import LoraFiles
from enlarger.diffusers.loaders.lora_weights import (
    PartWeight,
    Weight,
    scaled_weight,
    weight_per_adapter,
    weight_per_component,
    weighted_deltas,
)
from enlarger.diffusers.models.modules import model_view
from enlarger.diffusers.models.tokenizer import CLIPTokenizer
from enlarger.errors import InputError
from enlarger.tasks.loading.load import TOKENIZER_OF_ENCODER, clip_part, encoders_for

log = logging.getLogger(__name__)
Names = str | Sequence[str]


def _empty() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, eq=False)
class Adapters:
    """What was added to a pipeline. Its parts are a function of this, `parts`; without additions they are `base`."""

    base: Mapping[str, Any] = field(default_factory=_empty)  # the parts without additions
    configs: Mapping[str, Any] = field(default_factory=_empty)  # and what was stated of them
    applied: Mapping[str, Any] = field(default_factory=_empty)  # the parts that the pipeline was given
    inversions: tuple[tuple[str, TextualInversion], ...] = ()  # each with its text encoder's name
    loras: Mapping[str, Lora] = field(default_factory=dict[str, Lora])  # by the adapter's name
    weights: Mapping[str, Mapping[str, PartWeight]] = field(default_factory=_empty)  # by adapter and part
    active: Mapping[str, tuple[str, ...]] = field(default_factory=_empty)  # names by part
    fused: Mapping[str, Mapping[str, PartWeight]] = field(default_factory=_empty)  # by adapter and part
    enabled: bool = True

    def networks(self) -> dict[str, nn.Module]:
        return {part: self.base[part] for part in LORA_COMPONENTS if part in self.base}

    def apply(self, scale: float = 1.0) -> dict[str, Any]:
        """The parts with all additions; `scale` multiplies the active adapters."""
        components = dict(self.base)
        for part, inversion in self.inversions:
            tokenizer, encoder = (components[name].native for name in (TOKENIZER_OF_ENCODER[part], part))
            extended, grown = add_textual_inversion(
                tokenizer, encoder, inversion, encoder_key=clip_part(part, inversion)
            )
            components[TOKENIZER_OF_ENCODER[part]], components[part] = CLIPTokenizer(extended), model_view(grown)
        for part in self.networks() if self.enabled else ():
            if weighted := self._fused_updates(part) + self._active_updates(part, scale):
                components[part] = apply_loras(components[part], weighted)
        return components

    def merge_fused(self) -> "Adapters":
        """Without adapters; fused ones have become part of the weights."""
        merged = {
            part: apply_loras(self.base[part], fused)
            for part in LORA_COMPONENTS
            if (fused := self._fused_updates(part))
        }
        return Adapters({**self.base, **merged}, self.configs, self.applied, self.inversions)

    def _fused_updates(self, part: str) -> list[tuple[Mapping[str, WeightDelta], float]]:
        fused = [(name, each[part]) for name, each in self.fused.items() if part in each]
        return [one for name, weight in fused for one in weighted_deltas(self.loras[name].components[part], weight)]

    def _active_updates(self, part: str, scale: float) -> list[tuple[Mapping[str, WeightDelta], float]]:
        names = [name for name in self.active.get(part, ()) if part not in self.fused.get(name, {})]
        active = [(name, scaled_weight(self.weights[name][part], scale)) for name in names]
        return [one for name, weight in active for one in weighted_deltas(self.loras[name].components[part], weight)]


class LoraMethods(LoraFiles):
    """The methods for adapters and inversions, for the pipelines to inherit.

    Every change makes new networks around the pipeline's own weights, so that taking all back is exact. Weights that
    an adapter changes are in memory twice. Choose adapters before torch.compile.
    """

    _adapters: Adapters = Adapters()
    _configs: dict[str, Any]

    @with_value_errors
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: WeightsSource,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: object,
    ) -> None:
        """Read a LoRA from a local file, a folder or named tensors; it becomes the active one of the parts it changes.

        Tokens that it brings along are added as `load_textual_inversion` does, and stay until they are unloaded.
        `kwargs` are `weight_name` and `subfolder`; `use_safetensors=False` allows a pickle that holds tensors only.
        `hotswap` puts it, with a weight of 1, in the place of the adapter of that name. One that fits no layer warns.
        """
        state = self._current_adapters()
        used_names = state.loras.keys() | state.fused.keys()
        name = adapter_name
        if name is None:
            name = next(free for i in count(len(state.loras)) if (free := f"default_{i}") not in used_names)
        if hotswap and name not in state.loras:
            raise ArgumentError(f"no adapter is called {name!r} to be swapped; loaded are {', '.join(state.loras)}")
        if name in used_names and not hotswap:
            raise ArgumentError(f"an adapter is already called {name!r}; give another adapter_name, or delete it first")
        try:
            lora = load_lora(pretrained_model_name_or_path_or_dict, kwargs, state.networks())
        except UnfitLora as error:
            warnings.warn(f"{error} Nothing is loaded.", stacklevel=2)
            return
        weights = {name: dict.fromkeys(lora.components, 1.0)}
        active = state.active if hotswap else {**state.active, **dict.fromkeys(lora.components, (name,))}
        loras = {**state.loras, name: lora}
        natives = {name: getattr(part, "native", part) for name, part in state.base.items()}
        brought = [(part, each) for each in lora.inversions for part in encoders_for(natives, each)]
        self._apply_adapters(
            replace(
                state, loras=loras, weights={**state.weights, **weights}, active=active,
                inversions=(*state.inversions, *brought),
            )
        )  # fmt: skip

    def unload_lora_weights(self) -> None:
        """Take all adapters away: the weights are exactly those from before. Fused adapters stay fused."""
        self._apply_adapters(self._current_adapters().merge_fused())

    def set_adapters(self, adapter_names: Names, adapter_weights: Weight | Sequence[Weight] = None) -> None:
        """Choose the active adapters and their weights: numbers, or one for each part by its name.

        The unet's may be by block, `{"unet": {"down": 0.5, "up": {"block_1": [0.4, 1.0]}}}`; what is not named has 1.
        """
        state, names = self._current_adapters(), _as_list(adapter_names)
        _check_known(state, names)
        each = weight_per_adapter(adapter_weights, len(names))
        weights = {
            name: weight_per_component(weight, state.loras[name], state.networks())
            for name, weight in zip(names, each, strict=True)
        }
        active = {
            part: tuple(name for name in names if part in state.loras[name].components) for part in state.networks()
        }
        self._apply_adapters(replace(state, weights={**state.weights, **weights}, active=active))

    def disable_lora(self) -> None:
        """Run without adapters, fused ones too, until `enable_lora`."""
        self._apply_adapters(replace(self._current_adapters(), enabled=False))

    def enable_lora(self) -> None:
        """Run with the active adapters again."""
        self._apply_adapters(replace(self._current_adapters(), enabled=True))

    def delete_adapters(self, adapter_names: Names) -> None:
        """Forget adapters. A part that loses its last active one gets the first that is left, as in diffusers."""
        state = self._current_adapters()
        names = [name for name in _as_list(adapter_names) if name in state.loras]  # others are nothing, as in diffusers
        if fused := [name for name in names if name in state.fused]:
            raise ArgumentError(
                f"{', '.join(fused)} is fused; unfuse_lora() first, or unload_lora_weights() to keep it"
            )
        loras = {name: lora for name, lora in state.loras.items() if name not in names}
        active = {part: tuple(n for n in before if n not in names) for part, before in state.active.items()}
        for part in [part for part, before in state.active.items() if before and not active[part]]:
            active[part] = tuple(name for name, lora in loras.items() if part in lora.components)[:1]
        if chosen := sorted({name for left in active.values() for name in left} - set(self.get_active_adapters())):
            warnings.warn(f"the active adapters were deleted; now {', '.join(chosen)} is active", stacklevel=2)
        self._apply_adapters(replace(state, loras=loras, active=active))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that are active in any part."""
        return list(dict.fromkeys(name for names in self._adapters.active.values() for name in names))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """For each part the adapters that change it."""
        loras = self._adapters.loras
        listed = {part: [name for name, lora in loras.items() if part in lora.components] for part in LORA_COMPONENTS}
        return {part: names for part, names in listed.items() if names}

    @with_value_errors
    def fuse_lora(
        self, components: Sequence[str] = LORA_COMPONENTS, lora_scale: float = 1.0, safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None, **kwargs: object,
    ) -> None:  # fmt: skip
        """Make adapters part of the weights, scaled by `lora_scale`: the active ones, unless named.

        `safe_fusing` raises where a weight would not be finite. `kwargs` are `fuse_unet` and its kin, which change
        nothing, as in diffusers.
        """
        state = self._current_adapters()
        _warn_of_older(kwargs, "fuse_")
        _check_components(components)
        chosen = {
            name: state.loras[name] for name in _adapters_to_fuse(state, adapter_names, self.get_active_adapters())
        }
        fused = {name: dict(parts) for name, parts in state.fused.items()}
        for name, lora in chosen.items():
            for part in lora.components:
                if part in components and (adapter_names is not None or name in state.active.get(part, ())):
                    if part in fused.get(name, {}):
                        log.warning("%s is fused already; unfuse_lora() first to fuse it anew", name)
                        continue
                    fused.setdefault(name, {})[part] = scaled_weight(state.weights[name][part], lora_scale)
        merged = replace(state, fused=fused)
        if safe_fusing:
            _check_finite(merged.apply())
        self._apply_adapters(merged)

    def unfuse_lora(self, components: Sequence[str] = LORA_COMPONENTS, **kwargs: object) -> None:
        """Undo `fuse_lora`, its `lora_scale` too: the adapters are active as they were before."""
        state = self._current_adapters()
        _warn_of_older(kwargs, "unfuse_")
        _check_components(components)
        remaining = {
            n: {part: s for part, s in each.items() if part not in components} for n, each in state.fused.items()
        }
        self._apply_adapters(replace(state, fused={name: each for name, each in remaining.items() if each}))

    @property
    def fused_loras(self) -> set[str]:
        """Names of the adapters that are fused."""
        return set(self._adapters.fused)

    @property
    def num_fused_loras(self) -> int:
        return len(self._adapters.fused)

    @with_value_errors
    def load_textual_inversion(
        self, pretrained_model_name_or_path: WeightsSource | list[WeightsSource], token: str | list[str] | None = None,
        tokenizer: object = None, text_encoder: object = None, **kwargs: object,
    ) -> None:  # fmt: skip
        """Read tokens from local files, folders or named tensors, and add them to the text encoders that they fit.

        `text_encoder` chooses one of the pipeline's. `kwargs` are as for `load_lora_weights`.
        """
        is_list = isinstance(pretrained_model_name_or_path, list)
        sources = pretrained_model_name_or_path if is_list else [pretrained_model_name_or_path]
        tokens: list[str | None] = [*token] if isinstance(token, list) else [token] * len(sources)
        if len(tokens) != len(sources):
            raise ArgumentError(f"found {len(sources)} files and {len(tokens)} tokens, expected as many")
        state, chosen = self._current_adapters(), self._select_encoder(tokenizer, text_encoder)
        natives = {name: getattr(part, "native", part) for name, part in state.base.items()}
        added: list[tuple[str, TextualInversion]] = []
        for source, token_name in zip(sources, tokens, strict=True):
            resolved, allow_pickle = resolve_source(source, kwargs)
            inversion = read_textual_inversion(resolved, token_name, allow_pickle=allow_pickle)
            added += [(part, inversion) for part in ([chosen] if chosen else encoders_for(natives, inversion))]
        self._apply_adapters(replace(state, inversions=(*state.inversions, *added)))

    def unload_textual_inversion(
        self, tokens: Names | None = None, tokenizer: object = None, text_encoder: object = None
    ) -> None:
        """Take tokens away, all unless named, from all text encoders unless one is given."""
        state, chosen = self._current_adapters(), self._select_encoder(tokenizer, text_encoder)
        names = None if tokens is None else _as_list(tokens)
        removed = [
            (part, inversion)
            for part, inversion in state.inversions
            if chosen in (None, part) and (names is None or inversion.token in names)
        ]
        missing = sorted(set(names or ()) - {inversion.token for _, inversion in removed})
        if missing:
            present = ", ".join(inversion.token for _, inversion in state.inversions) or "none"
            raise ArgumentError(f"found no tokens {', '.join(missing)} to take away; added are {present}")
        self._apply_adapters(replace(state, inversions=tuple(each for each in state.inversions if each not in removed)))

    def _take_adapters(self, pipeline: Any, replaced: Container[str]) -> None:
        """Go on with another pipeline's adapters, if the parts that they change are this one's too."""
        state: Adapters = getattr(pipeline, "_adapters", Adapters())
        if not any(name in replaced for name, part in state.applied.items() if part is not state.base[name]):
            self._adapters = state

    def _with_lora_scale(self, scale: float) -> dict[str, nn.Module]:
        """The networks with all active adapters multiplied; without adapters a scale is of nothing, as in diffusers."""
        state = self._current_adapters() if self._adapters.loras else Adapters()
        if scale == 1.0 or not state.loras:
            return {}
        parts = state.apply(scale)
        return {part: parts[part] for part in state.networks()}

    def _current_adapters(self) -> Adapters:
        """The additions, on the parts that the pipeline has now: it may have been moved, or a part replaced."""
        state = self._adapters
        base: dict[str, Any] = {}
        configs: dict[str, Any] = {}
        for name in (*LORA_COMPONENTS, *TOKENIZER_OF_ENCODER.values()):
            part = getattr(self, name, None)
            if hasattr(part, "_orig_mod"):
                raise InputError(f"{name} is compiled; set pipe.{name} = pipe.{name}._orig_mod, and compile afterwards")
            if part is None:
                continue
            is_applied = part is state.applied.get(name)
            base[name] = _follow_device_and_dtype(state.base[name], part) if is_applied else part
            configs[name] = (state.configs if is_applied else self._configs).get(name)
        return replace(state, base=base, configs=configs)

    def _apply_adapters(self, state: Adapters) -> None:
        """Give the pipeline the parts with all additions; what a file stated of them stays known."""
        parts = state.apply()
        extended = {part for part, _ in state.inversions}
        for name, part in parts.items():
            if getattr(self, name) is not part:
                setattr(self, name, part)
                if name not in extended and state.configs[name] is not None:
                    self._configs[name] = state.configs[name]
        self._adapters = replace(state, applied=parts) if state.loras or state.inversions else Adapters()

    def _select_encoder(self, tokenizer: object, text_encoder: object) -> str | None:
        """The name of the text encoder that was given, with its tokenizer, as an argument."""
        if tokenizer is None and text_encoder is None:
            return None
        for part, tokenizer_name in TOKENIZER_OF_ENCODER.items():
            encoder_fits = text_encoder is None or text_encoder is getattr(self, part, None)
            if encoder_fits and (tokenizer is None or tokenizer is getattr(self, tokenizer_name, None)):
                return part
        raise ArgumentError(
            "`text_encoder` and `tokenizer` are no pair of this pipeline; give its own, or leave them out"
        )


def _follow_device_and_dtype(base: Any, applied: Any) -> Any:
    """The base's own weights where, and in the precision in which, the pipeline's are now."""
    if base is not applied and isinstance(base, nn.Module):
        applied_weights: dict[str, Tensor] = dict(applied.named_parameters())
        for name, weight in base.named_parameters():
            if weight is not applied_weights[name]:
                weight.data = weight.data.to(applied_weights[name].device, applied_weights[name].dtype)
    return base


def _warn_of_older(given: Mapping[str, object], start: str) -> None:
    known = [start + name for name in ("unet", "text_encoder", "text_encoder_2", "transformer")]
    if strange := [name for name in given if name not in known]:
        raise TypeError(f"{start}lora has no {', '.join(strange)}; it has components")
    if given:
        log.warning("%s changes nothing; give components, a list of names", ", ".join(given))


def _as_list(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _check_known(state: Adapters, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in state.loras]:
        loaded = ", ".join(state.loras) or "none"
        raise ArgumentError(f"no adapter is called {', '.join(missing)}; loaded are {loaded}")


def _adapters_to_fuse(state: Adapters, names: Sequence[str] | None, active: Sequence[str]) -> Sequence[str]:
    """The adapters to fuse."""
    _check_known(state, names or ())
    return active if names is None else names


def _check_components(components: Sequence[str]) -> None:
    if not components or not set(components) <= set(LORA_COMPONENTS):
        raise ArgumentError(f"components is {list(components)}, expected some of {', '.join(LORA_COMPONENTS)}")


def _check_finite(parts: Mapping[str, Any]) -> None:
    for part in LORA_COMPONENTS:
        for name, weight in parts[part].named_parameters() if part in parts else ():
            if not torch.isfinite(weight).all():
                raise InputError(f"{part}.{name} would not be finite with the adapters; leave out the damaged one")
