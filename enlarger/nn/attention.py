"""The one attention product that every network uses."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of `heads` heads.

    `q` is (B, L, D), `k` and `v` are (B, S, D); the result is (B, L, D). `mask` broadcasts to (B, heads, L, S): a bool
    one is True where attention is allowed, a float one is added to the logits. `causal` hides the later positions.
    """
    q, k, v = (t.reshape(*t.shape[:2], heads, t.shape[2] // heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)


def attend_streamed(q: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention with one head to keys and values that come in parts (B, S, D), in the memory of one part.

    The softmax's maximum and sum are carried along (Milakov and Gimelshein 2018; Rabe and Staats 2021), in float32.
    """
    q = q * q.shape[-1] ** -0.5
    highest = q.new_full((*q.shape[:2], 1), -torch.inf, dtype=torch.float32)
    total, result = torch.zeros_like(highest), torch.zeros_like(q, dtype=torch.float32)
    for k, v in pairs:
        logits = (q @ k.mT).float()
        raised = torch.maximum(highest, logits.amax(-1, keepdim=True))
        weights, fade = (logits - raised).exp(), (highest - raised).exp()
        total = total * fade + weights.sum(-1, keepdim=True)
        result = result * fade + (weights.to(v.dtype) @ v).float()
        highest = raised
    return (result / total).to(q.dtype)
