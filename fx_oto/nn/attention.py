"""Multi-head attention of which heads, a part of each head, or channels of its input and output were cut out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FewerHeads"]


class FewerHeads(nn.Module):
    """``nn.MultiheadAttention`` over sliced parameters: any number of heads, alike in what is left of their width.

    Returns what the original returns, except for the attention weights, which are those of the heads left. Scores
    are scaled by the original width.

    Args:
        full: the module, whose parameters were sliced.
        heads: how many heads are left.
    """

    def __init__(self, full: nn.MultiheadAttention, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, full.head_dim**-0.5
        self._qkv_same_embed_dim = False  # torch's transformer layers ask, and leave their fused kernel alone then
        self.batch_first, self.dropout = full.batch_first, full.dropout
        self.add_zero_attn = full.add_zero_attn
        self.in_proj_weight, self.in_proj_bias = full.in_proj_weight, full.in_proj_bias
        self.q_proj_weight, self.k_proj_weight = full.q_proj_weight, full.k_proj_weight
        self.v_proj_weight, self.bias_k, self.bias_v = full.v_proj_weight, full.bias_k, full.bias_v
        self.out_proj = full.out_proj
        self.out_proj.out_features, self.out_proj.in_features = self.out_proj.weight.shape
        self.train(full.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: shapes ``(L, N, E)``, ``(N, L, E)`` if batch-first, or ``(L, E)``."""
        batched = query.ndim == 3
        tokens = [self._batch_first(part, batched) for part in (query, key, value)]
        q, k, v = (self._heads(part) for part in self._with_biases(self._project(tokens)))
        mask = self._mask(q, k, key_padding_mask, attn_mask, batched)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.scale
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _batch_first(self, tokens: Tensor, batched: bool) -> Tensor:
        if not batched:
            return tokens.unsqueeze(0)
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def _project(self, tokens: list[Tensor]) -> list[Tensor]:
        packed = self.in_proj_weight
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if packed is None else self._unpack(packed)
        biases = (None, None, None) if self.in_proj_bias is None else self._unpack(self.in_proj_bias)
        return [F.linear(*parts) for parts in zip(tokens, weights, biases, strict=True)]

    def _unpack(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, of which the last may have lost more, or less, than the others."""
        values: int = self.out_proj.in_features
        scored = (len(packed) - values) // 2
        parts: tuple[Tensor, ...] = packed.split([scored, scored, values])
        return parts

    def _with_biases(self, projected: list[Tensor]) -> list[Tensor]:
        """Add the learnt key and value, and the zero ones, to the sequence."""
        q, *memory = projected
        for i, extra in enumerate((self.bias_k, self.bias_v)):
            if extra is not None:
                memory[i] = torch.cat([memory[i], extra.expand(len(q), -1, -1)], 1)
            if self.add_zero_attn:
                memory[i] = F.pad(memory[i], (0, 0, 0, 1))
        return [q, *memory]

    def _heads(self, tokens: Tensor) -> Tensor:
        heads: Tensor = tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, attention: Tensor | None, batched: bool
    ) -> Tensor | None:
        """Both masks as one float mask that broadcasts to ``(N, heads, L, S)``, open for what was added."""
        total: Tensor | None = None
        if padding is not None:
            padding = padding if batched else padding.unsqueeze(0)
            total = _as_float(padding, q)[:, None, None]
        if attention is not None:
            attention = _as_float(attention, q)
            attention = attention if attention.ndim == 2 else attention.unflatten(0, (len(q), -1))
            total = attention if total is None else total + attention
        if total is None:
            return None
        return F.pad(total, (0, k.size(-2) - total.size(-1)))


def _as_float(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
