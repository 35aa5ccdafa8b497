"""From hidden states to what is needed of the logits, without ever holding all logits of a row.

With a vocabulary of 150,000 the logits of 2,048 places and their gradient are 2.5 GB, more than a small model. So they are
made and reduced a part of the places at a time, and made again for the backward pass: one more product with the output
layer, a tenth of a training step of a small model. Where they are few they are kept instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["HELD", "OutputLayer", "Reduce"]

HELD = 2**28
"""Bytes of float32 logits up to which they are made at once and kept for the backward pass."""

Ids = np.ndarray[Any, np.dtype[np.int64]]
Layer = Callable[[torch.Tensor], torch.Tensor]
Reduce = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(P, V) logits, and of n tokens the place among the P that predicts each and its id, to (n, k) numbers."""


@dataclass(frozen=True)
class OutputLayer:
    """How the logits of one model are reduced."""

    module: Any | None
    """What makes the logits of hidden states; None if the model changes them afterwards (caps or scales them), so that they
    must be made whole."""
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> OutputLayer:
        """By running one token through the plain model: are the logits it returns the very tensor that its layer made?"""
        module = model.get_output_embeddings()
        made: list[Any] = []
        hook = module.register_forward_hook(lambda layer, inputs, output: made.append(output))
        try:
            with torch.no_grad():
                token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
                # As the class does it: what wraps the forward pass of this one object is for the passes that count.
                found = type(model).forward(model, input_ids=token, use_cache=False).logits
        finally:
            hook.remove()
        return cls(module if len(made) == 1 and made[0] is found else None, found.shape[-1])

    def reduce(self, model: Any, inputs: dict[str, Any], wanted_U: Ids, places_N: Ids, tokens_N: Ids, reduce: Reduce) -> Any:
        """(N, k) numbers of the tokens, on the model's device; differentiable if ``reduce`` is.

        Args:
            model: may be wrapped for several devices.
            inputs: of its forward pass, with ``logits_to_keep``, the columns of the rows at which anything is predicted.
            wanted_U: the places that predict, counted through the columns of the first row, then of the second.
            places_N, tokens_N: per token its place among the U, and its id.
            reduce: what is needed of the logits.
        """
        if self.module is None:
            logits = model(**inputs, use_cache=False).logits
            return reduce(_rows(logits, wanted_U), *_tensors(logits.device, places_N, tokens_N))

        def in_parts(layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
            size = max(1, HELD // (4 * self.vocabulary))
            return _in_parts(layer, _rows(hidden, wanted_U), places_N, tokens_N, reduce, size)

        with _in_its_place(self.module, in_parts):
            return model(**inputs, use_cache=False).logits


@contextlib.contextmanager
def _in_its_place(module: Any, instead: Callable[[Layer, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within, calling the module calls ``instead`` with its own forward pass and its input. Its hooks stay."""
    own, forward = vars(module).get("forward"), module.forward
    module.forward = lambda hidden: instead(forward, hidden)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _in_parts(
    layer: Layer, hidden_UH: torch.Tensor, places_N: Ids, tokens_N: Ids, reduce: Reduce, size: int
) -> torch.Tensor:
    """(N, k): ``reduce`` of the logits, ``size`` places at a time."""

    def reduced(hidden_PH: torch.Tensor, places_N: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
        return reduce(layer(hidden_PH), places_N, tokens_N)

    if len(hidden_UH) <= size:
        return reduced(hidden_UH, *_tensors(hidden_UH.device, places_N, tokens_N))
    order_N = places_N.argsort(kind="stable")
    starts = np.arange(0, len(hidden_UH), size)
    found = []
    for start, mine in zip(starts, np.split(order_N, places_N[order_N].searchsorted(starts[1:])), strict=True):
        part = hidden_UH[start : start + size]
        told = _tensors(part.device, places_N[mine] - start, tokens_N[mine])
        if torch.is_grad_enabled():
            found.append(checkpoint(reduced, part, *told, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(reduced(part, *told))
    return torch.cat(found)[torch.tensor(order_N.argsort(), device=hidden_UH.device)]


def _rows(values: torch.Tensor, wanted_U: Ids) -> torch.Tensor:
    """(U, ...) of (B, K, ...)."""
    flat = values.flatten(0, -2)
    return flat[torch.tensor(wanted_U, device=flat.device)]


def _tensors(device: torch.device, *ids: Ids) -> list[torch.Tensor]:
    return [torch.tensor(found, device=device) for found in ids]
