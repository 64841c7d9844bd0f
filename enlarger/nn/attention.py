"""The one attention product that every network uses."""

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of `heads` heads.

    `q` is (B, L, D), `k` and `v` are (B, S, D); the result is (B, L, D). `mask` broadcasts to (B, heads, L, S): a bool
    one is True where attention is allowed, a float one is added to the logits. `causal` hides the later positions.
    """
    q, k, v = (t.reshape(*t.shape[:2], heads, t.shape[2] // heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)
