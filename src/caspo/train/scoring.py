"""One forward pass over a row: log-probabilities and entropies of every step in it.

Logits are computed only at the places that predict a step's token, a part of them at a time where they are many
(`output_layer`), and reduced to a few numbers per token at once: `_TokenScores` keeps no copy of a (places, V) matrix.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from caspo.confidence.logits import Distribution
from caspo.core.errors import EngineError
from caspo.records import Tree
from caspo.train.attention import TreeAttention
from caspo.train.output_layer import OutputLayer, Reduce
from caspo.train.tree_packing import NodeKey, PackedRow, join, pack, separate

__all__ = ["CPU_ROWS", "GPU_ROWS", "NodeScores", "Scorer", "check_packing"]

CPU_ROWS = 8
"""Rows of (V,) reduced at once on a CPU, so that the passes over them stay in its cache."""
GPU_ROWS = 1024
_TOLERANCE = 1e-3
"""Largest difference of a token's log p between two layouts that float32 rounding explains, with room to spare, nats."""
_ROUGH_TOLERANCE = 0.3
"""The same of a step's mean in bfloat16: a 0.5B model was off by 0.05 (0.4 at its worst token), and by 0.6 to 1.5 where
the mask was not honoured."""
_FEW = 4
"""Tokens that a step counts as at least, so that no single one decides."""


@dataclass(frozen=True)
class NodeScores:
    """What the model says of one step; both (n,) over its tokens, differentiable."""

    logprobs: torch.Tensor
    """log p of each token, nats."""
    entropies: torch.Tensor
    """Entropy of each next-token distribution, nats."""


class Scorer:
    """Scores rows with one model.

    Args:
        model: the plain model (not yet wrapped for several devices).
        packed: whether rows are packed trees; else every path stands in a row of its own.

    Raises:
        EngineError: packed rows cannot be exact with this model, or it computes every logit there is.
    """

    def __init__(self, model: Any, *, packed: bool) -> None:
        if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
            raise EngineError(
                f"{type(model).__name__} cannot leave out logits (its forward pass takes no logits_to_keep): training would "
                "hold one for every token and word. Use a causal language model of a current transformers release."
            )
        self.attention = TreeAttention.of(model) if packed else None
        self.output = OutputLayer.of(model)
        self.dtype: torch.dtype = model.dtype

    def rows(self, tree: Tree, needed: Collection[int]) -> list[PackedRow]:
        """The rows of this layout with the paths to ``needed``."""
        return [pack(tree, needed)] if self.attention else separate(tree, needed)

    def score(self, model: Any, rows: Sequence[PackedRow]) -> dict[NodeKey, NodeScores]:
        """Scores of every node of the rows, differentiable; ``model`` may be wrapped."""
        return {key: NodeScores(*found.unbind(1)) for key, found in self._reduce(model, rows, _scores).items()}

    @torch.no_grad()
    def traces(self, model: Any, rows: Sequence[PackedRow]) -> dict[NodeKey, torch.Tensor]:
        """All that a `TokenTrace` holds: (n, 5) per node, float32 on the CPU, in the order of its fields.

        Raises:
            EngineError: NaN or infinite logits.
        """
        return {key: found.cpu() for key, found in self._reduce(model, rows, _statistics).items()}

    def _reduce(self, model: Any, rows: Sequence[PackedRow], reduce: Reduce) -> dict[NodeKey, torch.Tensor]:
        """Per node (n, k): what ``reduce`` makes of the logits that predict its tokens."""
        device = next(model.parameters()).device
        if self.attention:
            row = join(rows)
            positions_T = torch.tensor(row.positions, device=device)
            inputs = {
                "input_ids": torch.tensor([row.ids], device=device),
                "position_ids": positions_T[None],
                "attention_mask": self.attention.mask(positions_T, torch.tensor(row.ends, device=device), self.dtype),
            }
            nodes, width = row.nodes, len(row)
        else:
            ids_BT = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
            mask_BT = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
            width = ids_BT.shape[1]
            nodes = {
                key: ([i * width + p for p in predictors], tokens)
                for i, row in enumerate(rows)
                for key, (predictors, tokens) in row.nodes.items()
            }
            inputs = {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}
        sizes = [len(tokens) for _, tokens in nodes.values()]
        # A place that predicts several children appears once.
        kept_U, places_N = np.unique(
            np.concatenate([np.asarray(predictors) for predictors, _ in nodes.values()]), return_inverse=True
        )
        tokens_N = np.concatenate([np.asarray(tokens) for _, tokens in nodes.values()])
        columns = np.unique(kept_U % width)
        wanted_U = kept_U // width * len(columns) + columns.searchsorted(kept_U % width)
        inputs["logits_to_keep"] = torch.tensor(columns, device=device)
        found = self.output.reduce(model, inputs, wanted_U, places_N, tokens_N, reduce)
        return dict(zip(nodes, torch.split(found, sizes), strict=True))


@torch.no_grad()
def check_packing(model: Any, tree: Tree, needed: Collection[int]) -> float:
    """Score one tree in both layouts; the largest difference of a token's log p, nats. Of a model that is not held in
    float32, the largest mean over the tokens of a step: single ones are far off by rounding alone.

    Raises:
        EngineError: the difference is more than rounding: the model does not honour the tree mask.
    """
    apart_scorer, packed_scorer = Scorer(model, packed=False), Scorer(model, packed=True)
    apart = apart_scorer.traces(model, apart_scorer.rows(tree, needed))
    packed = packed_scorer.traces(model, packed_scorer.rows(tree, needed))
    differences = [(packed[key][:, 1] - apart[key][:, 1]).abs() for key in apart]
    exact = model.dtype == torch.float32
    worst = max(float(found.max() if exact else found.sum() / max(len(found), _FEW)) for found in differences)
    if not worst < (_TOLERANCE if exact else _ROUGH_TOLERANCE):
        raise EngineError(
            f"Packed and separate rows disagree on this model by {worst:.3g} nats a token: {type(model).__name__} does not "
            "honour the tree mask. Nothing was trained. Set train.layout=separate, and please report the model's type."
        )
    return worst


def _step(logits: torch.Tensor) -> int:
    return CPU_ROWS if logits.device.type == "cpu" else GPU_ROWS


def _scores(logits_PV: torch.Tensor, places_N: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
    """(N, 2): log p of each token, and the entropy it was drawn at."""
    logprobs_N, entropies_P = _TokenScores.apply(logits_PV, places_N, tokens_N)  # type: ignore[no-untyped-call]
    return torch.stack([logprobs_N, entropies_P[places_N]], dim=1)


def _statistics(logits_PV: torch.Tensor, places_N: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
    """(N, 5): see `Distribution.statistics`."""
    step = _step(logits_PV)
    found = [
        Distribution.of(logits_NV := logits_PV[places]).statistics(logits_NV, tokens)
        for places, tokens in zip(torch.split(places_N, step), torch.split(tokens_N, step), strict=True)
    ]
    return torch.cat(found)


class _TokenScores(torch.autograd.Function):
    """(U, V) logits, places (N,), tokens (N,) -> log p of the tokens (N,), entropies of the places (U,); float32.

    Gradients in closed form, with p = softmax(z): d log p_t / d z = onehot(t) - p and d H / d z = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, logits_UV: torch.Tensor, places_N: torch.Tensor, tokens_N: torch.Tensor) -> Any:
        logz, entropy = [], []
        for part in torch.split(logits_UV, _step(logits_UV)):
            z = part.double() if part.dtype == torch.float64 else part.float()
            lse = z.logsumexp(-1)
            # -inf logits (masked vocabulary) have p = 0; clamping keeps 0 * -inf out of the sum.
            expected = torch.linalg.vecdot((z - lse[:, None]).exp(), z.clamp_min(-1e30))
            logz.append(lse)
            entropy.append((lse - expected).clamp_min(0))
        logz_U, entropy_U = torch.cat(logz), torch.cat(entropy)
        ctx.save_for_backward(logits_UV, places_N, tokens_N, logz_U, entropy_U)
        return logits_UV[places_N, tokens_N].to(logz_U.dtype) - logz_U[places_N], entropy_U

    @staticmethod
    def backward(ctx: Any, grad_logp_N: torch.Tensor, grad_entropy_U: torch.Tensor) -> Any:
        logits_UV, places_N, tokens_N, logz_U, entropy_U = ctx.saved_tensors
        lost_U = torch.zeros_like(logz_U).index_add_(0, places_N, grad_logp_N)
        grad_UV = torch.empty_like(logits_UV)
        step = _step(logits_UV)
        order_N = places_N.argsort()
        starts = range(0, len(logits_UV), step)
        bounds = torch.searchsorted(places_N[order_N], torch.tensor([*starts, len(logits_UV)], device=places_N.device))
        of_starts = torch.split(order_N, bounds.diff().tolist())
        with_entropy = bool(grad_entropy_U.any())
        for start, mine in zip(starts, of_starts, strict=True):
            at = slice(start, start + step)
            logp = logits_UV[at].to(logz_U.dtype) - logz_U[at, None]
            factor = -lost_U[at, None]
            if with_entropy:
                factor = factor - grad_entropy_U[at, None] * (logp.clamp_min(-1e30) + entropy_U[at, None])
            part = logp.exp() * factor
            # Before rounding to the logits' type: for a sure token the sum is a small difference.
            part.index_put_((places_N[mine] - start, tokens_N[mine]), grad_logp_N[mine], accumulate=True)
            grad_UV[at] = part.to(grad_UV.dtype)
        return grad_UV, None, None
