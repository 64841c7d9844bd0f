"""Parts of a pipeline as classes: views of our networks with diffusers' and transformers' methods."""

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from enlarger.checkpoint.components import COMPONENT_CLASSES
from enlarger.checkpoint.folder.load import read_network
from enlarger.checkpoint.folder.save import write_network
from enlarger.checkpoint.load_module import to_current_key
from enlarger.diffusers.call.arguments import ArgumentError, MissingFile
from enlarger.diffusers.loaders.loading import parse_dtype, read_options
from enlarger.diffusers.models.autoencoder_methods import Latents, SlicedMethods
from enlarger.diffusers.models.model_methods import STATED, ModelMethods
from enlarger.diffusers.pipelines.pipeline_output import ModelOutput, TextOutput
from enlarger.diffusers.schedulers.config import SchedulerConfig
from enlarger.diffusers.unsupported import refuse
from enlarger.errors import Unsupported
from enlarger.nn import freeu
from enlarger.nn.autoencoder import AutoencoderKL as NativeAutoencoder
from enlarger.nn.autoencoder import join_posteriors
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.nn.taesd import LATENT_BOUND
from enlarger.nn.taesd import AutoencoderTiny as NativeTiny
from enlarger.nn.unet import UNet
from enlarger.strict_json import read_json
from enlarger.tasks.latent_diffusion.conditioning import vector_of
from enlarger.tasks.latent_diffusion.tiled_autoencoder import decode_image, encode_image

log = logging.getLogger(__name__)
TYPE = "_native_type"  # kept in the state that a view shares
LOADING = (
    "cache_dir", "token", "force_download", "local_files_only", "low_cpu_mem_usage", "use_safetensors", "revision",
    "proxies", "device_map", "max_memory", "offload_folder",
)  # fmt: skip


class ModelView(ModelMethods, nn.Module):
    """A view of one of our networks under other method names. Both are one: they share all state.

    `native` is the network as our own code takes it.
    """

    CLASS_NAME: ClassVar[str] = ""
    NATIVE: ClassVar[tuple[type[nn.Module], ...]] = ()
    PRECISION: ClassVar[torch.dtype | None] = torch.float32  # if none is asked for; None is the file's
    native_config: Any

    @classmethod
    def view(cls, network: nn.Module, config: Mapping[str, object] | None = None) -> Self:
        """The view of a network; `config` is what a file stated of it."""
        made = cls.__new__(cls)
        state: dict[str, object] = network.__dict__
        object.__setattr__(made, "__dict__", state)
        state.setdefault(TYPE, type(network))
        if config is not None:
            state[STATED] = dict(config)
        return made

    def __init__(self, **config: object) -> None:
        other = type(self).from_config(config)
        object.__setattr__(self, "__dict__", other.__dict__)

    @property
    def native(self) -> Any:
        kind = self.__dict__[TYPE]
        made = kind.__new__(kind)
        object.__setattr__(made, "__dict__", self.__dict__)
        return made

    @classmethod
    def from_config(cls, config: Mapping[str, object], **changes: object) -> Self:
        """A network with random weights."""
        stated: dict[str, Any] = json.loads(
            json.dumps({**config, **changes}, default=list)
        )  # lists, as files have them
        part = COMPONENT_CLASSES[cls.CLASS_NAME]
        network = part.create(part.read_config({k: v for k, v in stated.items() if not k.startswith("_")}))
        return cls.view(network.eval(), stated)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, variant: str | None = None,
        torch_dtype: torch.dtype | str | None = None, dtype: torch.dtype | str | None = None,
        disable_mmap: bool = False, **options: Any,
    ) -> Self:  # fmt: skip
        """Read one part of a local folder."""
        if strange := sorted(set(options) - set(LOADING)):
            raise Unsupported(f"{cls.__name__}.from_pretrained has no {', '.join(strange)}; leave it out")
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        if not (folder / "config.json").is_file():
            raise MissingFile(f"{folder}: no config.json, and nothing is downloaded here; give a local folder")
        asked = torch_dtype if dtype is None else dtype
        wanted = cls.PRECISION if asked is None else parse_dtype(asked)
        part = COMPONENT_CLASSES[cls.CLASS_NAME]
        network, config = read_network(folder, part, variant, wanted, mmap=not disable_mmap)
        return cls.view(network, config)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | Path, disable_mmap: bool = False, **options: Any
    ) -> Self:
        """The part of a local file in the layout of the original code."""
        from enlarger.checkpoint.single_file.load import read_single_file

        if not Path(pretrained_model_link_or_path).is_file():
            raise MissingFile(
                f"{pretrained_model_link_or_path}: no such file, and nothing is downloaded here; give a local file"
            )
        names = {"torch_dtype": "dtype", "prediction_type": "prediction"}
        known = ("torch_dtype", "dtype", "prediction_type", "allow_pickle", "config", "ema")
        read_options(None, {name: value for name, value in options.items() if name not in known})
        options = {names.get(name, name): value for name, value in options.items() if name in known}
        bundle = read_single_file(pretrained_model_link_or_path, mmap=not disable_mmap, **options)
        for name, part in bundle.components.items():
            if isinstance(part, cls.NATIVE):
                return cls.view(part, bundle.network_configs.get(name))
        raise ArgumentError(f"{pretrained_model_link_or_path}: holds no {cls.__name__}")

    @classmethod
    def of_theirs(cls, module: Any) -> Self:
        """A module of diffusers or transformers: its config and its weights, read into our network once."""
        config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
        plain: dict[str, Any] = json.loads(json.dumps(config, default=str))  # lists, as files have them
        stated = {name: value for name, value in plain.items() if name != "_name_or_path"}
        part = COMPONENT_CLASSES[type(module).__name__]
        with torch.device("meta"):
            network = part.create(part.read_config({k: v for k, v in stated.items() if not k.startswith("_")}))
        weights = {
            name: value for key, value in module.state_dict().items() if (name := to_current_key(key)) is not None
        }
        network.load_state_dict(weights, assign=True)
        for key, weight in module.named_parameters():  # the same objects, so that moving one moves the other
            place, _, leaf = str(to_current_key(key)).rpartition(".")
            setattr(network.get_submodule(place), leaf, weight)
        return cls.view(network.eval(), stated)

    def save_pretrained(
        self, save_directory: str | Path, variant: str | None = None, safe_serialization: bool = True,
        push_to_hub: bool = False, **_: object,
    ) -> None:  # fmt: skip
        """Write a folder that diffusers and transformers read."""
        if push_to_hub:
            refuse("push_to_hub", "push_to_hub")
        if not safe_serialization:
            log.warning(
                "weights are written as safetensors, which diffusers reads too; safe_serialization has no effect"
            )
        folder = Path(save_directory)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            made = Path(place) / "model"
            write_network(made, self.CLASS_NAME, self.native, self.__dict__.get(STATED, {}), None, 10**10, variant)
            folder.mkdir(exist_ok=True)
            for file in made.iterdir():
                file.replace(folder / file.name)

    @property
    def config(self) -> SchedulerConfig:
        """All settings by diffusers' names."""
        native: Any = self.__dict__["config"]
        found = {**COMPONENT_CLASSES[self.CLASS_NAME].write_config(native), **self.__dict__.get(STATED, {})}
        return SchedulerConfig(self.CLASS_NAME, found, {})

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class UNet2DConditionModel(ModelView):
    """The network that denoises, of any Stable Diffusion, or of the x2 upscaler."""

    unet_name: ClassVar[str] = "unet"
    text_encoder_name: ClassVar[str] = "text_encoder"
    CLASS_NAME: ClassVar[str] = "UNet2DConditionModel"
    NATIVE: ClassVar[tuple[type[nn.Module], ...]] = (UNet, KUNet)

    def forward(
        self, sample: Tensor, timestep: float | Tensor, encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None, timestep_cond: Tensor | None = None, attention_mask: object = None,
        cross_attention_kwargs: Mapping[str, float] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None, return_dict: bool = True, **native: Tensor | None,
    ) -> Any:  # fmt: skip
        """The raw output; `native` inputs are those of our networks, whose output then is a tensor."""
        network = self.native
        if "tokens" in native or "prepared" in native:
            return network(sample, timestep, **native)
        scale = (cross_attention_kwargs or {}).get("scale", 1.0)
        found = [name for name, value in native.items() if value is not None] + ["scale"] * (scale != 1)
        if attention_mask is not None or found:
            found = found or ["attention_mask"]
            raise Unsupported(f"the UNet takes no {', '.join(found)}; there are no adapters beside the prompt here")
        time = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        condition = "vector" if isinstance(network, KUNet) else "guidance"
        inputs: dict[str, Tensor | None] = {
            "tokens": encoder_hidden_states,
            condition: timestep_cond,
            "label": class_labels,
        }
        if added_cond_kwargs:
            native_config: Any = network.config
            channels: int = native_config.time_id_channels
            inputs["vector"] = vector_of(added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"], channels)
        if encoder_attention_mask is not None:
            inputs["mask"] = encoder_attention_mask.bool()
        out = network(sample, time, **{name: value for name, value in inputs.items() if value is not None})
        return ModelOutput(sample=out) if return_dict else (out,)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (Si et al. 2023) in the first two stages of the way up."""
        freeu.enable(self.native, freeu.FreeU(s1, s2, b1, b2))

    def disable_freeu(self) -> None:
        """Undo `enable_freeu`."""
        freeu.disable(self.native)


class AutoencoderKL(SlicedMethods, ModelView):
    """The autoencoder; latents are not scaled here, as in diffusers."""

    CLASS_NAME: ClassVar[str] = "AutoencoderKL"
    NATIVE: ClassVar[tuple[type[nn.Module], ...]] = (NativeAutoencoder,)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pictures (B, 3, H, W) in -1..1 to the distribution of their latents."""
        native = self.native
        found = join_posteriors([encode_image(native, one, tiled=self.use_tiling) for one in self._batches(x)])
        mean = native.unscale(found.mean)
        std = native.unscale(found.mean + found.std) - mean
        latents = Latents(mean, std)
        return ModelOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Latents to pictures about -1..1."""
        native = self.native
        made = [decode_image(native, native.scale(one), tiled=self.use_tiling) for one in self._batches(z)]
        sample = torch.cat(made).to(z.device)
        return ModelOutput(sample=sample) if return_dict else (sample,)

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """`encode` in tiles, which changes nothing but the memory."""
        return self._in_tiles(self.encode, x, return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """`decode` in tiles, which changes nothing but the memory."""
        return self._in_tiles(self.decode, z, return_dict)

    def forward(
        self, sample: Tensor, sample_posterior: bool = False, return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:  # fmt: skip
        """Pictures encoded and decoded."""
        latents = self.encode(sample).latent_dist
        return self.decode(latents.sample(generator) if sample_posterior else latents.mode(), return_dict)


class AutoencoderTiny(SlicedMethods, ModelView):
    """The small autoencoder (TAESD), for previews or as a pipeline's `vae`; it needs no tiles."""

    CLASS_NAME: ClassVar[str] = "AutoencoderTiny"
    NATIVE: ClassVar[tuple[type[nn.Module], ...]] = (NativeTiny,)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        latents = self.native.encode(x)
        return ModelOutput(latents=latents) if return_dict else (latents,)

    def scale_latents(self, x: Tensor) -> Tensor:
        """Latents to 0..1, to be shown or kept in 8 bits."""
        return (x / (2 * LATENT_BOUND) + 0.5).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """Undo `scale_latents`."""
        return (x - 0.5) * (2 * LATENT_BOUND)

    def decode(self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True) -> Any:
        sample = self.native.decode(x)
        return ModelOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        return self.decode(self.native.encode(sample), return_dict=return_dict)


class CLIPTextModel(ModelView):
    """CLIP's text encoder."""

    CLASS_NAME: ClassVar[str] = "CLIPTextModel"
    NATIVE: ClassVar[tuple[type[nn.Module], ...]] = (ClipText,)
    PRECISION: ClassVar[torch.dtype | None] = None  # as in transformers

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False,
        return_dict: bool = True, **others: object,
    ) -> Any:  # fmt: skip
        """Features of token ids (B, L); Unsupported for a mask that leaves something out."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise Unsupported("the text encoder attends to padding, as Stable Diffusion does; leave attention_mask out")
        if given := [name for name, value in others.items() if value is not None and value is not False]:
            raise Unsupported(f"the text encoder takes no {', '.join(given)}; give input_ids alone")
        found = self.native(input_ids)
        made = TextOutput(
            found.text_embeds,
            found.last_hidden_state,
            None if found.text_embeds is not None else found.pooler_output,
            found.hidden_states if output_hidden_states else None,
        )
        return made if return_dict else made.to_tuple()

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of the tokens' vectors; its weight may be written to."""
        return self.native.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Another table, which the encoder reads from then on."""
        state: dict[str, Any] = self.__dict__
        config = state["config"]
        if value.embedding_dim != config.width:
            raise ArgumentError(f"the embeddings are {value.embedding_dim} wide, expected {config.width}")
        end = config.eos_token_id if config.eos_token_id is not None else config.vocab_size - 1
        state["config"] = replace(config, vocab_size=value.num_embeddings, eos_token_id=end)
        self.native.embeddings.token_embedding = value
        if STATED in state:
            state[STATED] = {**state[STATED], "vocab_size": value.num_embeddings}

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> nn.Embedding:
        """The table with so many rows: the last are cut off, or new ones are the mean of those that there are."""
        table = self.get_input_embeddings()
        count = table.num_embeddings
        if new_num_tokens is None or new_num_tokens == count:
            return table
        old = table.weight.detach()
        grown = torch.cat([old, old.mean(0, keepdim=True).expand(max(new_num_tokens - count, 0), -1)])[:new_num_tokens]
        made = nn.Embedding.from_pretrained(grown.clone(), freeze=not table.weight.requires_grad)
        self.set_input_embeddings(made)
        return made


class CLIPTextModelWithProjection(CLIPTextModel):
    """CLIP's text encoder whose first output is the projected text."""

    CLASS_NAME: ClassVar[str] = "CLIPTextModelWithProjection"


MODELS: Mapping[str, type[ModelView]] = {
    kind.CLASS_NAME: kind
    for kind in (UNet2DConditionModel, AutoencoderKL, AutoencoderTiny, CLIPTextModel, CLIPTextModelWithProjection)
}


def model_view(part: Any, config: Mapping[str, object] | None = None) -> Any:
    """A network of ours, diffusers' or transformers' as a view; what is none of them as it is."""
    if isinstance(part, ModelView) or not isinstance(part, nn.Module):
        return part
    if type(part).__name__ in MODELS and type(part).__module__.split(".")[0] in ("diffusers", "transformers"):
        return MODELS[type(part).__name__].of_theirs(part)
    if isinstance(part, ClipText):
        projects = part.config.projection_dim is not None
        return (CLIPTextModelWithProjection if projects else CLIPTextModel).view(part, config)
    kind = next((kind for kind in MODELS.values() if isinstance(part, kind.NATIVE)), None)
    return part if kind is None else kind.view(part, config)


class AutoModel:
    """A part of a local folder by the class that its config names."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise MissingFile("AutoModel is made by AutoModel.from_pretrained(FOLDER, subfolder=...)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_or_path: str | Path, subfolder: str | None = None, **options: Any
    ) -> ModelView:
        """Read it; `options` as for the class that it is."""
        file = Path(pretrained_model_or_path) / (subfolder or "") / "config.json"
        if not file.is_file():
            raise MissingFile(f"{file.parent}: no config.json, and nothing is downloaded here; give a local folder")
        stated = read_json(file)
        architectures: Any = stated.get("architectures") or [None]
        name = stated.get("_class_name", architectures[0])
        if name not in MODELS:
            raise Unsupported(f"{file.parent}: holds a {name}; the models here are {', '.join(MODELS)}")
        return MODELS[str(name)].from_pretrained(pretrained_model_or_path, subfolder, **options)
