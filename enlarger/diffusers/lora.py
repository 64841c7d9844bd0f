"""LoRAs and textual inversions under diffusers' method names; the pipeline's parts are replaced, never changed."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.checkpoint.lora import PARTS, Lora, Update, apply_loras, make_lora, read_lora
from enlarger.diffusers.arguments import ArgumentError
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.tasks.reading import TOKENIZERS, clip_part, encoders_for
from enlarger.text.inversion import Inversion, add_inversion, read_inversion

USUAL_NAME = "pytorch_lora_weights.safetensors"
FIXED_LOADING = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": True}  # how it is done anyway

Source = str | Path | Mapping[str, Tensor]
Weight = float | Mapping[str, Any] | None
Names = str | Sequence[str]


def _empty() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, eq=False)
class Adapters:
    """What was added to a pipeline. Its parts are a function of this, `parts`; without additions they are `base`."""

    base: Mapping[str, Any] = field(default_factory=_empty)  # the parts without additions
    configs: Mapping[str, Any] = field(default_factory=_empty)  # and what was stated of them
    shown: Mapping[str, Any] = field(default_factory=_empty)  # the parts that the pipeline was given
    inversions: tuple[tuple[str, Inversion], ...] = ()  # each with its text encoder's name
    loras: Mapping[str, Lora] = field(default_factory=dict[str, Lora])  # by the adapter's name
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=_empty)  # by adapter and part
    active: Mapping[str, tuple[str, ...]] = field(default_factory=_empty)  # names by part
    fused: Mapping[str, Mapping[str, float]] = field(default_factory=_empty)  # by adapter and part
    enabled: bool = True

    def networks(self) -> dict[str, nn.Module]:
        return {part: self.base[part] for part in PARTS if part in self.base}

    def parts(self, scale: float = 1.0) -> dict[str, Any]:
        """The parts with all additions; `scale` multiplies the active adapters."""
        made = dict(self.base)
        for part, inversion in self.inversions:
            pair = made[TOKENIZERS[part]], made[part]
            made[TOKENIZERS[part]], made[part] = add_inversion(*pair, inversion, part=clip_part(part, inversion))
        for part in self.networks() if self.enabled else ():
            if weighted := self._fused(part) + self._active(part, scale):
                made[part] = apply_loras(made[part], weighted)
        return made

    def settled(self) -> "Adapters":
        """Without adapters; fused ones have become part of the weights."""
        merged = {part: apply_loras(self.base[part], fused) for part in PARTS if (fused := self._fused(part))}
        return Adapters({**self.base, **merged}, self.configs, self.shown, self.inversions)

    def _fused(self, part: str) -> list[tuple[Mapping[str, Update], float]]:
        return [(self.loras[name].parts[part], each[part]) for name, each in self.fused.items() if part in each]

    def _active(self, part: str, scale: float) -> list[tuple[Mapping[str, Update], float]]:
        names = [name for name in self.active.get(part, ()) if part not in self.fused.get(name, {})]
        return [(self.loras[name].parts[part], scale * self.weights[name][part]) for name in names]


class LoraMethods:
    """The methods for adapters and inversions, for the pipelines to inherit.

    Every change makes new networks around the pipeline's own weights, so that taking all back is exact. Weights that
    an adapter changes are in memory twice. Choose adapters before torch.compile.
    """

    _adapters: Adapters = Adapters()
    _configs: dict[str, Any]

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: Source, adapter_name: str | None = None, hotswap: bool = False,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Read a LoRA from a local file, a folder or named tensors; it becomes the active one of the parts it changes.

        `kwargs` are `weight_name` and `subfolder`; `use_safetensors=False` allows a pickle that holds tensors only.
        """
        if hotswap:
            raise Unsupported("hotswap is not available; delete_adapters, then load the other one")
        state = self._current()
        taken = state.loras.keys() | state.fused.keys()
        name = adapter_name
        if name is None:
            name = next(free for i in count(len(state.loras)) if (free := f"default_{i}") not in taken)
        if name in taken:
            raise ArgumentError(f"an adapter is already called {name!r}; give another adapter_name, or delete it first")
        lora = _read(pretrained_model_name_or_path_or_dict, kwargs, state.networks())
        weights = {name: dict.fromkeys(lora.parts, 1.0)}
        active = {**state.active, **dict.fromkeys(lora.parts, (name,))}
        loras = {**state.loras, name: lora}
        self._show(replace(state, loras=loras, weights={**state.weights, **weights}, active=active))

    def unload_lora_weights(self) -> None:
        """Take all adapters away: the weights are exactly those from before. Fused adapters stay fused."""
        self._show(self._current().settled())

    def set_adapters(self, adapter_names: Names, adapter_weights: Weight | Sequence[Weight] = None) -> None:
        """Choose the active adapters and their weights: numbers, or a number for each part by its name."""
        state, names = self._current(), _listed(adapter_names)
        _check_known(state, names)
        each = _one_each(adapter_weights, len(names))
        weights = {name: _by_part(weight, state.loras[name]) for name, weight in zip(names, each, strict=True)}
        active = {part: tuple(name for name in names if part in state.loras[name].parts) for part in state.networks()}
        self._show(replace(state, weights={**state.weights, **weights}, active=active))

    def disable_lora(self) -> None:
        """Run without adapters, fused ones too, until `enable_lora`."""
        self._show(replace(self._current(), enabled=False))

    def enable_lora(self) -> None:
        """Run with the active adapters again."""
        self._show(replace(self._current(), enabled=True))

    def delete_adapters(self, adapter_names: Names) -> None:
        """Forget adapters. A part that loses its last active one gets the first that is left, as in diffusers."""
        state, names = self._current(), _listed(adapter_names)
        _check_known(state, names)
        if fused := [name for name in names if name in state.fused]:
            raise ArgumentError(
                f"{', '.join(fused)} is fused; unfuse_lora() first, or unload_lora_weights() to keep it"
            )
        loras = {name: lora for name, lora in state.loras.items() if name not in names}
        active = {part: tuple(n for n in before if n not in names) for part, before in state.active.items()}
        for part in [part for part, before in state.active.items() if before and not active[part]]:
            active[part] = tuple(name for name, lora in loras.items() if part in lora.parts)[:1]
        if chosen := sorted({name for left in active.values() for name in left} - set(self.get_active_adapters())):
            warnings.warn(f"the active adapters were deleted; now {', '.join(chosen)} is active", stacklevel=2)
        self._show(replace(state, loras=loras, active=active))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that are active in any part."""
        return list(dict.fromkeys(name for names in self._adapters.active.values() for name in names))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """For each part the adapters that change it."""
        loras = self._adapters.loras
        listed = {part: [name for name, lora in loras.items() if part in lora.parts] for part in PARTS}
        return {part: names for part, names in listed.items() if names}

    def fuse_lora(
        self, components: Sequence[str] = PARTS, lora_scale: float = 1.0, safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Make adapters part of the weights, scaled by `lora_scale`: the active ones, unless named.

        `safe_fusing` raises where a weight would not be finite.
        """
        state = self._current()
        _check_parts(components)
        chosen = {name: state.loras[name] for name in _checked(state, adapter_names, self.get_active_adapters())}
        fused = {name: dict(parts) for name, parts in state.fused.items()}
        for name, lora in chosen.items():
            for part in lora.parts:
                if part in components and (adapter_names is not None or name in state.active.get(part, ())):
                    if part in fused.get(name, {}):
                        raise ArgumentError(f"{name} is fused already; unfuse_lora() first")
                    fused.setdefault(name, {})[part] = lora_scale * state.weights[name][part]
        merged = replace(state, fused=fused)
        if safe_fusing:
            _check_finite(merged.parts())
        self._show(merged)

    def unfuse_lora(self, components: Sequence[str] = PARTS) -> None:
        """Undo `fuse_lora`, its `lora_scale` too: the adapters are active as they were before."""
        state = self._current()
        _check_parts(components)
        kept = {n: {part: s for part, s in each.items() if part not in components} for n, each in state.fused.items()}
        self._show(replace(state, fused={name: each for name, each in kept.items() if each}))

    @property
    def fused_loras(self) -> set[str]:
        """Names of the adapters that are fused."""
        return set(self._adapters.fused)

    @property
    def num_fused_loras(self) -> int:
        return len(self._adapters.fused)

    def load_textual_inversion(
        self, pretrained_model_name_or_path: Source | list[Source], token: str | list[str] | None = None,
        tokenizer: Any = None, text_encoder: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Read tokens from local files, folders or named tensors, and add them to the text encoders that they fit.

        `text_encoder` chooses one of the pipeline's. `kwargs` are as for `load_lora_weights`.
        """
        many = isinstance(pretrained_model_name_or_path, list)
        sources = pretrained_model_name_or_path if many else [pretrained_model_name_or_path]
        tokens: list[str | None] = [*token] if isinstance(token, list) else [token] * len(sources)
        if len(tokens) != len(sources):
            raise ArgumentError(f"found {len(sources)} files and {len(tokens)} tokens, expected as many")
        state, chosen = self._current(), self._chosen_encoder(tokenizer, text_encoder)
        added: list[tuple[str, Inversion]] = []
        for source, said in zip(sources, tokens, strict=True):
            place, pickle = _place(source, kwargs)
            inversion = read_inversion(place, said, allow_pickle=pickle)
            added += [(part, inversion) for part in ([chosen] if chosen else encoders_for(state.base, inversion))]
        self._show(replace(state, inversions=(*state.inversions, *added)))

    def unload_textual_inversion(
        self, tokens: Names | None = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:  # fmt: skip
        """Take tokens away, all unless named, from all text encoders unless one is given."""
        state, chosen = self._current(), self._chosen_encoder(tokenizer, text_encoder)
        names = None if tokens is None else _listed(tokens)
        gone = [
            (part, inversion)
            for part, inversion in state.inversions
            if chosen in (None, part) and (names is None or inversion.token in names)
        ]
        missing = sorted(set(names or ()) - {inversion.token for _, inversion in gone})
        if missing or not gone:
            there = ", ".join(inversion.token for _, inversion in state.inversions) or "none"
            raise ArgumentError(f"found no tokens {', '.join(missing)} to take away; added are {there}")
        self._show(replace(state, inversions=tuple(each for each in state.inversions if each not in gone)))

    def _with_lora_scale(self, scale: float | None) -> dict[str, nn.Module]:
        """The networks with all active adapters multiplied by `scale`; None is 1."""
        state = self._current()
        if scale is None or scale == 1.0:
            return {part: getattr(self, part) for part in state.networks()}
        if not state.loras:
            raise ArgumentError(
                f"found a LoRA scale of {scale:g} and no LoRA; load_lora_weights first, or leave it out"
            )
        parts = state.parts(scale)
        return {part: parts[part] for part in state.networks()}

    def _current(self) -> Adapters:
        """The additions, on the parts that the pipeline has now: it may have been moved, or a part replaced."""
        state = self._adapters
        base: dict[str, Any] = {}
        configs: dict[str, Any] = {}
        for name in (*PARTS, *TOKENIZERS.values()):
            part = getattr(self, name, None)
            if hasattr(part, "_orig_mod"):
                raise InputError(f"{name} is compiled; set pipe.{name} = pipe.{name}._orig_mod, and compile afterwards")
            if part is None:
                continue
            ours = part is state.shown.get(name)
            base[name] = _following(state.base[name], part) if ours else part
            configs[name] = (state.configs if ours else self._configs).get(name)
        return replace(state, base=base, configs=configs)

    def _show(self, state: Adapters) -> None:
        """Give the pipeline the parts with all additions; what a file stated of them stays known."""
        parts = state.parts()
        grown = {part for part, _ in state.inversions}
        for name, part in parts.items():
            if getattr(self, name) is not part:
                setattr(self, name, part)
                if name not in grown and state.configs[name] is not None:
                    self._configs[name] = state.configs[name]
        self._adapters = replace(state, shown=parts) if state.loras or state.inversions else Adapters()

    def _chosen_encoder(self, tokenizer: Any, text_encoder: Any) -> str | None:
        """The name of the text encoder that was given, with its tokenizer, as an argument."""
        if tokenizer is None and text_encoder is None:
            return None
        for part, beside in TOKENIZERS.items():
            encoder_fits = text_encoder is None or text_encoder is getattr(self, part, None)
            if encoder_fits and (tokenizer is None or tokenizer is getattr(self, beside, None)):
                return part
        raise ArgumentError(
            "`text_encoder` and `tokenizer` are no pair of this pipeline; give its own, or leave them out"
        )


def _read(source: Source, options: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Lora:
    place, pickle = _place(source, options)
    if isinstance(place, Mapping):
        return make_lora(place, networks)
    return read_lora(_file_in(place) if place.is_dir() else place, networks, allow_pickle=pickle)


def _place(source: Source, options: Mapping[str, Any]) -> tuple[Path | Mapping[str, Tensor], bool]:
    """The file, the folder or the tensors that are meant, and whether a pickle may be read."""
    for name, value in options.items():
        known = name in ("weight_name", "subfolder", "use_safetensors", "local_files_only")
        if not known and value not in (None, FIXED_LOADING.get(name)):
            raise Unsupported(f"{name}={value!r} has no effect here; give a local file, weight_name and subfolder")
    if isinstance(source, Mapping):
        return source, False
    path = Path(source, *(str(options[key]) for key in ("subfolder", "weight_name") if options.get(key) is not None))
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, and nothing is downloaded here; fetch it first and give its path")
    return path, options.get("use_safetensors") is False


def _file_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    usual = folder / USUAL_NAME
    if usual in found or len(found) == 1:
        return usual if usual in found else found[0]
    names = ", ".join(file.name for file in found) or "no safetensors file"
    raise CheckpointError(f"{folder}: found {names}, expected {USUAL_NAME} or a single file; choose with weight_name")


def _following(base: Any, shown: Any) -> Any:
    """The base's own weights where, and in the precision in which, the pipeline's are now."""
    if base is not shown and isinstance(base, nn.Module):
        now: dict[str, Tensor] = dict(shown.named_parameters())
        for name, weight in base.named_parameters():
            if weight is not now[name]:
                weight.data = weight.data.to(now[name].device, now[name].dtype)
    return base


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _one_each(weights: Weight | Sequence[Weight], wanted: int) -> list[Weight]:
    if weights is None or isinstance(weights, Mapping | float | int):
        return [weights] * wanted
    if len(weights) != wanted:
        raise ArgumentError(f"found {wanted} adapter names and {len(weights)} weights, expected as many")
    return list(weights)


def _check_known(state: Adapters, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in state.loras]:
        there = ", ".join(state.loras) or "none"
        raise ArgumentError(f"no adapter is called {', '.join(missing)}; loaded are {there}")


def _checked(state: Adapters, names: Sequence[str] | None, active: Sequence[str]) -> Sequence[str]:
    """The adapters to fuse."""
    _check_known(state, names or ())
    chosen = active if names is None else names
    if not chosen:
        raise ArgumentError("there is no adapter to fuse; load_lora_weights first")
    return chosen


def _check_parts(parts: Sequence[str]) -> None:
    if not parts or not set(parts) <= set(PARTS):
        raise ArgumentError(f"components is {list(parts)}, expected some of {', '.join(PARTS)}")


def _by_part(weight: Weight, lora: Lora) -> dict[str, float]:
    """A weight for each part that the adapter changes; 1 where none is said."""
    said = weight if isinstance(weight, Mapping) else dict.fromkeys(lora.parts, weight)
    if strange := [part for part in said if part not in PARTS]:
        raise ArgumentError(f"found weights for {', '.join(strange)}, expected some of {', '.join(PARTS)}")
    if any(isinstance(value, Mapping | Sequence) for value in said.values()):
        raise Unsupported("an adapter has one weight for each part here, not one for each block; give numbers")
    return {part: 1.0 if (value := said.get(part)) is None else float(value) for part in lora.parts}


def _check_finite(parts: Mapping[str, Any]) -> None:
    for part in PARTS:
        for name, weight in parts[part].named_parameters() if part in parts else ():
            if not torch.isfinite(weight).all():
                raise InputError(f"{part}.{name} would not be finite with the adapters; leave out the damaged one")
