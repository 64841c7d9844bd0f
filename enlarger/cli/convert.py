"""`enlarger convert`: a checkpoint from one layout to the other, or a file of weights to safetensors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from enlarger.cli.options import AllowPickle, Overwrite, Prediction, Variant
from enlarger.cli.terminal import print_lines
from enlarger.errors import InputError

if TYPE_CHECKING:
    from enlarger.tasks.loading.load import Checkpoint

SUFFIX = ".safetensors"
Format = Literal["float32", "float16", "bfloat16"]


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="single file, folder, or name in the cache")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=f"a folder, or a file that ends in {SUFFIX}")],
    dtype: Annotated[Format | None, typer.Option(help="number format to write", show_default="as it is")] = None,
    variant: Variant = None,
    prediction: Prediction = None,
    vae: Annotated[Path | None, typer.Option(help="folder or file of the autoencoder to take instead")] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="folder or file of the text encoder to take instead")
    ] = None,
    text_encoder_2: Annotated[
        Path | None, typer.Option(help="folder or file of SDXL's second text encoder to take instead")
    ] = None,
    allow_pickle: AllowPickle = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as a folder in diffusers' layout, or as one file in the original code's.

    A file that is no whole model (an autoencoder, a LoRA) is written as it is, in safetensors.
    """
    from enlarger.hub.cache import resolve  # torch comes with what follows
    from enlarger.tasks.loading.load import Checkpoint

    path = resolve(source)
    single_file = target.suffix == SUFFIX
    if target.exists() and not overwrite:
        raise InputError(f"{target}: already exists; choose another place or allow overwriting")
    if target.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx"):
        raise InputError(
            f"{target}: files of {target.suffix} are not written; end the name in {SUFFIX}, or name a folder"
        )
    if not path.is_dir() and single_file and not _is_model(path, allow_pickle):
        parts = {"variant": variant, "prediction": prediction, "vae": vae, "text-encoder": text_encoder}
        parts["text-encoder-2"] = text_encoder_2
        if given := [f"--{name}" for name, value in parts.items() if value is not None]:
            raise InputError(f"{path}: is no whole model, and {', '.join(given)} are for those; leave them")
        _copy_weights(path, target, dtype, allow_pickle)
    else:
        checkpoint = Checkpoint(
            path, variant, prediction, allow_pickle, vae, text_encoder, text_encoder_2=text_encoder_2
        )
        _write(checkpoint, target, dtype, single_file, overwrite)
    print_lines([target])


def _is_model(path: Path, allow_pickle: bool) -> bool:
    from enlarger.checkpoint.single_file.detect import detect
    from enlarger.checkpoint.tensors.open import open_checkpoint
    from enlarger.errors import CheckpointError

    tensors = open_checkpoint(path, allow_pickle=allow_pickle)
    try:
        return detect({name: tensors.shape(name) for name in tensors.keys()}, path).kind == "model"
    except CheckpointError:
        return False


def _copy_weights(path: Path, target: Path, dtype: Format | None, allow_pickle: bool) -> None:
    from enlarger.checkpoint.tensors.open import open_checkpoint
    from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
    from enlarger.runtime.choices import DTYPES

    tensors = open_checkpoint(path, allow_pickle=allow_pickle)
    loaded = {name: tensors.get_tensor(name) for name in tensors.keys()}
    save_safetensors(target, loaded, None if dtype is None else DTYPES[dtype], tensors.metadata)


def _write(checkpoint: "Checkpoint", target: Path, dtype: Format | None, single_file: bool, overwrite: bool) -> None:
    from enlarger.checkpoint.folder.save import save_folder
    from enlarger.checkpoint.single_file.save import save_single_file
    from enlarger.runtime.choices import DTYPES

    torch_dtype = None if dtype is None else DTYPES[dtype]
    bundle = checkpoint.open(torch_dtype)
    if single_file:
        save_single_file(bundle, target, torch_dtype, overwrite=overwrite)
    else:
        save_folder(bundle, target, torch_dtype, overwrite=overwrite)
