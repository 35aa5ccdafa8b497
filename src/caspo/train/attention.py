"""Which models may see a packed tree, and what each of them must be handed as its attention mask.

Token k is visible to token q if k stands on q's path: ``k <= q`` in the row and ``q < end[k]``, where ``end[k]`` is
where the subtree of k's step ends. Sliding-window layers see only what is fewer than ``window`` *positions* (depths
along the path) back, whatever stands between in the row.

What reads the row in any other way (a recurrent state, a convolution, chunks of the row, positions counted from a 2D
mask) would be silently wrong, and is refused by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from caspo.core.errors import EngineError

__all__ = ["TreeAttention"]

_BY_BLOCK = "caspo_tree_sdpa"
"""Name under which `_attend_by_block` is known to transformers."""
_BLOCK = 128
"""Queries that look at the same keys at once: few enough to skip most of a bushy row, enough to fill a matrix product."""

Mask = Any
"""What ``attention_mask`` may be: a tensor, a BlockMask, or a dict of them by kind of layer."""

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_RECURRENT = frozenset(
    {
        "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "mamba",
        "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "recurrent_gemma",
        "rwkv", "xlstm", "zamba", "zamba2",
    }
)  # fmt: skip
_MASK_POSITIONS = frozenset({"bloom", "mpt"})
"""ALiBi: distances are counted in the row, not by position ids."""
_IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
_INSTEAD = "Train it with train.layout=separate: every path in a row of its own, the same numbers, more tokens."


@dataclass(frozen=True)
class TreeAttention:
    """The tree mask in the form one model takes."""

    implementation: str
    window: int | None
    """How far a sliding layer looks back, in positions."""
    full: bool
    """Whether there are layers that see the whole path."""
    by_block: bool = False
    """Whether the mask says which keys each block of queries needs (see `_attend_by_block`)."""

    @classmethod
    def of(cls, model: Any) -> TreeAttention:
        """The form for ``model`` (unwrapped). On a CPU a model that runs `sdpa` is set to `_attend_by_block`.

        Raises:
            EngineError: a tree mask cannot be honoured by this architecture or by this attention kernel.
        """
        config = model.config.get_text_config()
        name, kind = type(model).__name__, config.model_type
        layers = set(getattr(config, "layer_types", None) or ())
        odd = sorted(layers - _KNOWN_LAYERS)
        if getattr(config, "is_encoder_decoder", False):
            raise EngineError(f"{name} is an encoder-decoder; step-wise training needs a causal language model.")
        if kind in _RECURRENT or odd or getattr(config, "attention_chunk_size", None):
            what = ", ".join(odd) or ("chunked attention" if kind not in _RECURRENT else "a recurrent state")
            raise EngineError(
                f"{name} ({kind}) has layers that read tokens by their place in the row ({what}): a packed tree would be "
                f"silently wrong there. {_INSTEAD}"
            )
        if kind in _MASK_POSITIONS or (kind == "falcon" and config.alibi):
            raise EngineError(f"{name} ({kind}) counts distances in the row (ALiBi), not along a path. {_INSTEAD}")
        if "local" in (getattr(config, "attention_layers", None) or ()):
            raise EngineError(f"{name} ({kind}) has windows that are counted in the row, not along a path. {_INSTEAD}")
        implementation = config._attn_implementation  # transformers has a public way to set it and none to ask for it
        if implementation == "sdpa" and model.device.type == "cpu":
            _register()
            model.set_attn_implementation(_BY_BLOCK)
        by_block = config._attn_implementation == _BY_BLOCK
        if by_block:
            implementation = "sdpa"
        if implementation not in _IMPLEMENTATIONS:
            raise EngineError(
                f"{name} runs {implementation}, which takes no mask of its own: a packed tree would be silently wrong. "
                "Load the model with attn_implementation='sdpa' (or 'eager'; 'flex_attention' on a GPU)."
            )
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        if layers and "sliding_attention" not in layers:
            window = None
        return cls(implementation, window, window is None or "full_attention" in layers, by_block)

    def mask(self, positions_T: torch.Tensor, ends_T: torch.Tensor, dtype: torch.dtype) -> Mask:
        """``attention_mask`` for one row of T tokens: (1, 1, T, T), or a dict of two by kind of layer.

        ``dtype`` is the model's: the eager kernel adds the mask to its scores.
        """
        full = self._one(positions_T, ends_T, None, dtype) if self.full else None
        if self.window is None:
            return full
        sliding = self._one(positions_T, ends_T, self.window, dtype)
        return sliding if full is None else {"full_attention": full, "sliding_attention": sliding}

    def _one(self, positions_T: torch.Tensor, ends_T: torch.Tensor, window: int | None, dtype: torch.dtype) -> Mask:
        if self.implementation == "flex_attention":
            from torch.nn.attention.flex_attention import create_block_mask

            def visible(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                seen = (k <= q) & (q < ends_T[k])
                return seen if window is None else seen & (positions_T[q] - positions_T[k] < window)

            total = len(ends_T)
            return create_block_mask(visible, None, None, total, total, device=ends_T.device)
        index_T = torch.arange(len(ends_T), device=ends_T.device)
        # Rows: who looks (q); columns: who is seen (k).
        seen_TT = (index_T[None, :] <= index_T[:, None]) & (index_T[:, None] < ends_T[None, :])
        if window is not None:
            seen_TT &= positions_T[:, None] - positions_T[None, :] < window
        if self.implementation == "eager":  # a boolean mask would be added to the scores as 0 and 1
            zeros_TT = torch.zeros(seen_TT.shape, dtype=dtype, device=ends_T.device)
            return zeros_TT.masked_fill(~seen_TT, torch.finfo(dtype).min)[None, None]
        mask = seen_TT[None, None]
        if self.by_block:
            mask.caspo_blocks = [  # type: ignore[attr-defined]
                (slice(start, start + _BLOCK), keys, seen_TT[start : start + _BLOCK, keys][None, None])
                for start in range(0, len(ends_T), _BLOCK)
                for keys in [seen_TT[start : start + _BLOCK].any(0).nonzero()[:, 0]]
            ]
        return mask


def _attend_by_block(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA; under a tree mask on a CPU, a block of queries at a time over the keys that any of them sees.

    The CPU's kernel computes the whole square whatever the mask says, and most of a tree's square is empty.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    blocks = getattr(attention_mask, "caspo_blocks", None)
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    parts = [
        sdpa_attention_forward(module, query[:, :, rows], key[:, :, keys], value[:, :, keys], mask, **more)[0]
        for rows, keys, mask in blocks
    ]
    return torch.cat(parts, dim=1), None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_BY_BLOCK, _attend_by_block)
    AttentionMaskInterface.register(_BY_BLOCK, sdpa_mask)
