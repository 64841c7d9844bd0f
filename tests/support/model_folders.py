"""A folder of models as web UIs lay it out, with tiny files of every kind in it."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import save_file
from torch import Tensor

from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.single_file.save import save_single_file
from tests.support import tiny
from tests.support.random_weights import normal

UNET_LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, 32),
    "mid_block.resnets.0.conv1": (64, 64, 3, 3),
}
TEXT_LAYERS = {"text_model.encoder.layers.1.mlp.fc1": (64, 32)}
STYLES = """name,prompt,negative_prompt
oil,"oil painting of {prompt}, thick paint",photo
warm,warm light,
bent,<lora:bend:0.5>,
"""


def lora(seed: int, text: bool = True) -> dict[str, Tensor]:
    """A LoRA of rank 2 with kohya's names."""
    layers = {f"lora_unet_{name.replace('.', '_')}": shape for name, shape in UNET_LAYERS.items()}
    layers |= {f"lora_te_{name.replace('.', '_')}": shape for name, shape in TEXT_LAYERS.items()} if text else {}
    tensors: dict[str, Tensor] = {}
    for name, shape in layers.items():
        tensors[f"{name}.lora_down.weight"] = normal(2, *shape[1:], seed=seed)
        tensors[f"{name}.lora_up.weight"] = normal(shape[0], 2, *(1 for _ in shape[2:]), seed=seed + 1) / 2
    return tensors


@cache
def web_ui_folder() -> Path:
    """AUTOMATIC1111's names of folders and ComfyUI's side by side; one for all tests, not to be changed."""
    root = Path(mkdtemp(prefix="enlarger-models-"))
    for name in ("Stable-diffusion", "checkpoints", "Lora", "loras/sub", "VAE", "upscale_models", "embeddings"):
        (root / name).mkdir(parents=True)
    model = read_folder(tiny.sd1_folder())
    save_single_file(model, root / "Stable-diffusion" / "tiny.safetensors")
    (root / "checkpoints" / "painter").symlink_to(tiny.inpaint_folder())
    save_file(lora(5), root / "Lora" / "bend.safetensors")
    save_file(lora(9, text=False), root / "loras" / "sub" / "wave.safetensors")
    vae = {name: tensor.contiguous() for name, tensor in model.components["vae"].state_dict().items()}
    save_file(vae, root / "VAE" / "fine.safetensors")
    torch.save({"state_dict": lora(5)}, root / "Lora" / "old.pt")
    save_file({"emb_params": normal(2, 32)}, root / "embeddings" / "thing.safetensors")
    (root / "checkpoints" / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    (root / "checkpoints" / "notes.txt").write_text("no weights")
    (root / "styles.csv").write_text(STYLES)
    return root
