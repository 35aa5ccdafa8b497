"""What decodes in the engine `hf`: a model, the keys and values of prefixes that it has seen, and memory for its rows.

Prompts and steps that were decoded before are continued from their cached keys and values. The memory of a batch stays for
the next one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from caspo.core.errors import ModelError
from caspo.engines.base import Request
from caspo.engines.local.kv import Prefix, PrefixStore, RowPool, owned
from caspo.engines.pieces import Pieces
from caspo.engines.prompts import turn_ends
from caspo.engines.reading import shown_ids
from caspo.engines.rows import SHARED, check, shared_length
from caspo.steps import Reading

__all__ = ["Decoder"]

_PREFILL_TOKENS_CPU, _PREFILL_TOKENS_GPU = 1024, 4096
"""Tokens of one prefill pass, padding included: bounds its memory, and how long rows under way wait for it. On a CPU shorter
passes pad less and lose nothing."""


class Decoder:
    """A model with its memory: what a batch is given, and what the engine composes. The arguments are those of `HFEngine`.

    Raises:
        ModelError: the model has layers without keys and values, or no token that ends a text.
    """

    def __init__(
        self, model: Any, tokenizer: Any, reading: Reading, *, name: str, max_rows: int, pool_bytes: int, store_bytes: int
    ) -> None:
        _refuse_unsupported(model)
        self.model, self.tokenizer, self.name, self.reading = model, tokenizer, name, reading
        self.max_rows, self.pool_bytes = max_rows, pool_bytes
        self.device = next(model.parameters()).device
        config = model.config.get_text_config(decoder=True)
        self.context_length = int(getattr(config, "max_position_embeddings", 1 << 30))
        self._layers = int(config.num_hidden_layers)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._token_bytes: int = 2 * self._layers * heads * width * model.dtype.itemsize
        """Bytes of one token's keys and values."""
        self.store = PrefixStore(store_bytes)
        self._pool: RowPool | None = None
        self._nothing: Prefix | None = None
        """That of no tokens, which a prompt of a single one is continued from."""
        generation = getattr(model.generation_config, "eos_token_id", None)
        listed = generation if isinstance(generation, list) else [generation]
        shown = shown_ids(tokenizer, reading)
        # A message of thinking ends inside of a turn: what ends it ends the turn only where it is EOS, or settings say so.
        self.eos_ids = frozenset(i for i in listed if i is not None) | (
            turn_ends(tokenizer) - (shown - {tokenizer.eos_token_id})
        )
        if not self.eos_ids:
            raise ModelError(
                f"{name} has no end-of-sequence token, so no solution would ever end. "
                "Set tokenizer.eos_token, save the tokenizer and load it again."
            )
        self.pieces = Pieces(tokenizer, shown)
        """The bytes of each token."""

    def check(self, request: Request) -> None:
        """Refuse a request that can never be served.

        Raises:
            EngineError: its prefix leaves no room in the model's context.
        """
        check(request, self.context_length, self.name)

    def has(self, ids: tuple[int, ...]) -> bool:
        """Whether the keys and values of a sequence are kept, so that nothing has to be computed."""
        return self.store.longest(ids) == len(ids)

    def computing(self, sequences: Sequence[tuple[int, ...]]) -> Generator[None, None, list[Prefix]]:
        """The keys and values of each sequence, computed where they are not there. Pauses between passes."""
        needed = list(dict.fromkeys(sequences))
        found = {ids: self.store.get(ids) if ids else self._empty() for ids in needed}
        missing = [ids for ids in needed if found[ids] is None]
        shared = _common_prefix(missing)
        if len(missing) > 1 and len(shared) >= SHARED and _length(self._beginning(shared)) < len(shared) - 1:
            yield from self.computing([shared])  # what all prompts begin with, once
            yield
        begun = {ids: self._beginning(ids) for ids in missing}
        missing.sort(key=lambda ids: len(ids) - _length(begun[ids]))
        most = _PREFILL_TOKENS_CPU if self.device.type == "cpu" else _PREFILL_TOKENS_GPU
        while missing:
            batch: dict[tuple[int, ...], Prefix | None] = {}
            for ids in missing:
                if batch and (len(batch) + 1) * (len(ids) - _length(begun[ids])) > most:
                    break
                batch[ids] = begun[ids]
            first = missing[0]
            if len(first) - _length(begun[first]) > most:  # then it is alone
                part = first[: _length(begun[first]) + most]
                begun[first] = self._prefill({part: begun[first]})[part]
            else:
                found.update(self._prefill(batch))
                missing = missing[len(batch) :]
                for ids in batch:
                    prefix = found[ids]
                    assert prefix is not None
                    self.store.put(ids, prefix)
            if missing:
                yield
        prefixes = []
        for ids in sequences:
            prefix = found[ids]
            assert prefix is not None
            prefixes.append(prefix)
        return prefixes

    def _empty(self) -> Prefix:
        """The keys and values of no tokens: tensors (H, 0, D), as the model's layers have them."""
        if self._nothing is None:
            token = (0,)
            self._nothing = [(keys[:, :0], values[:, :0]) for keys, values in self._prefill({token: None})[token]]
        return self._nothing

    def _beginning(self, ids: tuple[int, ...]) -> Prefix | None:
        """Keys and values that are there of the beginning of ``ids``, if worth it; at least one token is left to compute."""
        kept = min(self.store.longest(ids), len(ids) - 1)
        return self.store.get(ids[:kept]) if kept >= SHARED else None

    def _prefill(self, batch: Mapping[tuple[int, ...], Prefix | None]) -> dict[tuple[int, ...], Prefix]:
        """Keys and values of every sequence of ``batch``, of whose beginning some are there.

        Every row computes as many tokens at its end as the row with the most to compute.
        """
        width, rest = max(map(len, batch)), max(len(ids) - _length(begun) for ids, begun in batch.items())
        past = width - rest
        ids_BT = torch.zeros(len(batch), rest, dtype=torch.long, device=self.device)
        mask_BT = torch.zeros(len(batch), width, dtype=torch.long, device=self.device)
        for i, ids in enumerate(batch):
            new = ids[-rest:]
            ids_BT[i, rest - len(new) :] = torch.tensor(new, device=self.device)
            mask_BT[i, width - len(ids) :] = 1
        cache = DynamicCache()
        if past:
            _fill(cache, [(begun, max(0, len(ids) - rest)) for ids, begun in batch.items()], past)
        self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(-1) - 1).clamp_min(0)[:, past:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        result = {}
        for i, ids in enumerate(batch):
            own = slice(width - len(ids), width)
            result[ids] = owned([(layer.keys[i, :, own], layer.values[i, :, own]) for layer in cache.layers])
        return result

    def pool_for(self, columns: int, rows: int) -> RowPool:
        """An empty pool of so many columns and rows or more.

        That of an earlier batch if it is large enough (fresh memory costs seconds on some machines), and not so wide that it
        could hold twice the rows.
        """
        pool, self._pool = self._pool, None  # the old one is freed before a larger one is made
        if pool is None or not columns <= pool.columns <= 2 * columns or pool.capacity < rows:
            del pool
            pool = RowPool(self._layers, rows, columns, self.device)
        pool.clear()
        return pool

    def give_back(self, pool: RowPool) -> None:
        """Keep a pool for the next batch."""
        self._pool = pool

    def columns(self, requests: Sequence[Request]) -> int:
        """Columns of a pool for these requests, rounded up so that a search that goes deeper keeps its pool."""
        longest = max(min(len(r.prefix_ids) + r.max_new_tokens, self.context_length) for r in requests)
        return -(-(longest + 64) // 128) * 128

    def capacity(self, columns: int) -> int:
        """Rows that fit into the memory."""
        return max(1, min(self.max_rows, self.pool_bytes // (columns * self._token_bytes)))


def _common_prefix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest beginning that all share: that of the first and the last in sorted order."""
    if not sequences:
        return ()
    first, last = min(sequences), max(sequences)
    return first[: shared_length(first, last)]


def _length(prefix: Prefix | None) -> int:
    return 0 if prefix is None else prefix[0][0].shape[1]


def _fill(cache: DynamicCache, rows: Sequence[tuple[Prefix | None, int]], width: int) -> None:
    """Put so many of every row's keys and values into the cache, ending at column ``width``; what is before is masked."""
    like = next(prefix for prefix, _ in rows if prefix is not None)
    for layer, pair in enumerate(like):
        both = []
        for side, (heads, _, size) in enumerate(tensor.shape for tensor in pair):
            joined = pair[side].new_zeros(len(rows), heads, width, size)
            for row, (prefix, count) in enumerate(rows):
                if prefix is not None and count:
                    joined[row, :, width - count :] = prefix[layer][side][:, :count]
            both.append(joined)
        cache.update(both[0], both[1], layer)


def _refuse_unsupported(model: Any) -> None:
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    odd = kinds - {"full_attention", "sliding_attention"}
    # Of states that are not attention's transformers tells nowhere else.
    stateful = getattr(model, "_is_stateful", False)
    if odd or stateful or model.config.is_encoder_decoder:
        raise ModelError(
            f"The hf engine decodes models whose layers are full or sliding attention; {model.config.model_type} has "
            f"{', '.join(sorted(odd)) or 'another state'}. Serve this model with vLLM or SGLang instead."
        )
