"""Tree-packed step DPO against TRL's `DPOTrainer`: the same pairs, model, precision and machine, in one run.

Sides take turns, every measurement in a process of its own. A figure is the ratio of the medians; ``low`` and ``high``
are the smallest and the largest ratio of a turn. TRL runs at its best batch size (searched here first), with its reference
precomputed and without EOS, and with its vocabulary projection at completion tokens only, which on a CPU it does not do by
itself (see `trl_baseline.py`): the stricter comparison. What a user of TRL gets on a CPU is shown beside it.

The floor: every distinct token must go through the model once, forwards and backwards. How near we are to it is measured
against plain forward and backward passes of the same model over dense causal rows as long as the packed ones.

Figures: `reference_speedup_*`, `reference_speedup_*_as_shipped`, `epoch_speedup_*`, `epoch_speedup_*_as_shipped`,
`peak_memory_ratio_*`, `unique_token_efficiency`
Figures with the demo's trees, which --quick leaves out: `unique_token_efficiency_demo`
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parts.measure import Figure, options, ratio, report
from parts.processes import in_fresh_process, peak_mb
from parts.trees import deep, demo_like
from parts.trl_side import Timing, best_batch_size, check_worker, epoch_worker, pair_rows, reference_worker

from caspo.records import StepPair, Tree

Data = tuple[Sequence[Tree], Sequence[StepPair]]

STEP_PAIRS = 16
"""Pairs of an optimiser step on both sides."""
TRAINING = {"beta": 0.1, "learning_rate": 1e-6}


def our_epoch(model: str, data: Data, micro_tokens: int) -> Timing:
    """One epoch of ours, the reference given; for `in_fresh_process`."""
    from caspo.engines.models import load
    from caspo.train.step_dpo import StepDPOSettings, train_step_dpo

    trees, pairs = data
    settings = StepDPOSettings(batch_pairs=STEP_PAIRS, micro_tokens=micro_tokens, checkpoint_seconds=1e9, **TRAINING)
    reference = {(tree.question.id, node.id): 0.0 for tree in trees for node in tree.nodes}
    loaded = load(model)[0]
    with tempfile.TemporaryDirectory() as folder:
        _, result = train_step_dpo(loaded, trees, pairs, settings, 0, Path(folder), reference=reference)
    return Timing(result.seconds, result.unique_tokens, result.unique_tokens, peak_mb(), result.loss_last)


def our_reference(model: str, data: Data, micro_tokens: int) -> Timing:
    """Scoring every step of the pairs once, without the hash of the weights; for `in_fresh_process`."""
    from caspo.engines.models import load
    from caspo.train.reference import score_trees
    from caspo.train.scoring import Scorer
    from caspo.train.units import make_units

    loaded = load(model)[0]
    units = make_units(*data, judged=False)
    start = time.perf_counter()
    score_trees(loaded, Scorer(loaded, packed=True), [(unit.tree, unit.needed) for unit in units], micro_tokens, cache=None)
    tokens = sum(unit.size for unit in units)
    return Timing(time.perf_counter() - start, tokens, tokens, peak_mb())


def efficiency(model: str, data: Data, micro_tokens: int, turns: int) -> list[tuple[float, float]]:
    """Per turn tokens per second: packed rows with our loss, and dense rows of the same lengths with plain cross-entropy.

    No optimiser on either side; for `in_fresh_process`.
    """
    import torch

    from caspo.engines.models import load
    from caspo.train.scoring import Scorer
    from caspo.train.step_dpo import StepDPOSettings, step_loss
    from caspo.train.tree_packing import join, pack
    from caspo.train.units import make_units, micro_batches

    loaded = load(model)[0]
    loaded.train()
    scorer, settings = Scorer(loaded, packed=True), StepDPOSettings(**TRAINING)
    batches = micro_batches(make_units(*data, judged=False), micro_tokens)
    rows = [join([pack(unit.tree, unit.needed) for unit in micro.units]) for micro in batches]
    reference = {key: 0.0 for row in rows for key in row.nodes}

    def packed(place: int) -> None:
        step_loss(loaded, scorer, batches[place], reference, settings)[0].backward()

    def dense(place: int) -> None:
        ids = torch.tensor([rows[place].ids])
        loaded(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    def seconds(pass_over: Callable[[int], None]) -> float:
        start = time.perf_counter()
        for place in range(len(rows)):
            pass_over(place)
            loaded.zero_grad()
        return time.perf_counter() - start

    packed(0)
    dense(0)
    tokens = sum(map(len, rows))
    return [(tokens / seconds(packed), tokens / seconds(dense)) for _ in range(turns)]


class Comparison:
    """Our side and TRL's on one set of trees."""

    def __init__(self, name: str, model: str, data: Data, micro_tokens: int, turns: int, sizes: Sequence[int]) -> None:
        self.name, self.model, self.data, self.micro_tokens, self.turns = name, model, data, micro_tokens, turns
        self.rows = pair_rows(*data)
        self.reference = [(0.0, 0.0)] * len(self.rows)
        self.sizes = {what: self._search(what, sizes) for what in ("reference", "epoch")}
        self.figures: dict[str, Figure] = {}

    def theirs(self, what: str, size: int, rows: Sequence[Any], *, compact_head: bool = True) -> Timing:
        """One measurement of TRL."""
        if what == "reference":
            return in_fresh_process(reference_worker, self.model, rows, size, compact_head=compact_head)[0]
        return in_fresh_process(
            epoch_worker, self.model, rows, batch_size=size, accumulation=STEP_PAIRS // size,
            reference=self.reference[: len(rows)], compact_head=compact_head, **TRAINING,
        )  # fmt: skip

    def ours(self, what: str) -> Timing:
        """One measurement of ours."""
        worker = our_reference if what == "reference" else our_epoch
        return in_fresh_process(worker, self.model, self.data, self.micro_tokens)

    def _search(self, what: str, sizes: Sequence[int]) -> int:
        if len(sizes) == 1:
            return sizes[0]
        some = self.rows[:STEP_PAIRS]
        found = best_batch_size(lambda size: self.theirs(what, size, some), sizes, repeats=1)
        shown = ", ".join(f"{size}: {timing.seconds:.1f} s" for size, timing in found.items())
        print(f"{self.name}: TRL's {what} on {len(some)} pairs by batch size: {shown}", flush=True)
        return next(iter(found))

    def run(self, what: str) -> None:
        """Take turns, and note the figures."""
        size = self.sizes[what]
        pairs = []
        for turn in range(self.turns):
            sides = [lambda: self.theirs(what, size, self.rows), lambda: self.ours(what)]
            first, second = (side() for side in (sides if turn % 2 == 0 else reversed(sides)))
            pairs.append((first, second) if turn % 2 == 0 else (second, first))
        theirs, ours = [a for a, _ in pairs], [b for _, b in pairs]
        shipped = self.theirs(what, size, self.rows, compact_head=False)
        seconds = [t.seconds for t in theirs], [t.seconds for t in ours]
        note = (
            f"{len(self.data[0])} trees, {len(self.rows)} pairs; "
            f"TRL {statistics.median(seconds[0]):.1f} s at batch {size} over {theirs[0].tokens} tokens, "
            f"ours {statistics.median(seconds[1]):.1f} s over {ours[0].tokens}"
        )
        self.figures[f"{what}_speedup_{self.name}"] = ratio(*seconds, note)
        self.figures[f"{what}_speedup_{self.name}_as_shipped"] = ratio(
            [shipped.seconds] * self.turns,
            seconds[1],
            "TRL as it comes: on a CPU it projects the vocabulary at every position",
        )
        if what == "epoch":
            peaks = [t.peak_mb for t in theirs], [t.peak_mb for t in ours]
            self.figures[f"peak_memory_ratio_{self.name}"] = ratio(
                *peaks, f"whole process, MiB: TRL {max(peaks[0]):.0f}, ours {max(peaks[1]):.0f}"
            )


def growth(model: str, micro_tokens: int) -> list[dict[str, Any]]:
    """How both sides grow with the shape of one tree: pair tokens over unique tokens, our and TRL's seconds a pair."""
    shapes = [
        *((f"6 steps deep, {pairs} pairs", {"depth": 6, "pairs": pairs}) for pairs in (6, 12, 24, 48)),
        *((f"{depth} steps deep, 24 pairs", {"depth": depth, "pairs": 24}) for depth in (3, 12)),
        ("6 steps deep, 24 pairs, steps twice as long", {"depth": 6, "pairs": 24, "step_tokens": (40, 80)}),
    ]
    table = []
    for name, shape in shapes:
        comparison = Comparison("growth", model, deep(1, **shape), micro_tokens, 1, [4])  # type: ignore[arg-type]
        theirs, ours = comparison.theirs("epoch", 4, comparison.rows), comparison.ours("epoch")
        tokens, pairs = theirs.real_tokens / ours.tokens, len(comparison.rows)
        mine, other = ours.seconds / pairs, theirs.seconds / pairs
        table.append({"trees": name, "token_ratio": tokens, "our_seconds_a_pair": mine, "trl_seconds_a_pair": other})
        print(
            f"  {name:<45} tokens {tokens:5.1f}x   ours {mine:.3f} s a pair, TRL {other:.3f}: {other / mine:.1f}x",
            flush=True,
        )
    return table


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "the smallest model, one deep tree, one turn")
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder of a model")
    parser.add_argument("--demo-trees", type=int, default=16)
    parser.add_argument("--deep-trees", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=["deep", "demo"], choices=["deep", "demo"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="batch sizes of TRL to try")
    parser.add_argument("--demo-micro-tokens", type=int, default=1024, help="our tokens of a pass, on the demo's trees")
    parser.add_argument("--deep-micro-tokens", type=int, default=2048, help="our tokens of a pass, on deep trees")
    parser.add_argument("--growth", action="store_true", help="also how the cost grows with pairs, depth and length")
    args = parser.parse_args()
    if args.quick:
        args.model, args.sets, args.deep_trees, args.turns, args.sizes = "stories-tiny", ["deep"], 1, 1, [4]
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL, the other side, is not installed: pip install 'caspo-llm[trl]'")
    figures: dict[str, Figure] = {}
    sets = {
        "deep": (deep(args.deep_trees), args.deep_micro_tokens),
        "demo": (demo_like(args.demo_trees), args.demo_micro_tokens),
    }
    in_fresh_process(check_worker, args.model, pair_rows(*sets["demo"][0])[:4], beta=0.1, compact_head=True)
    for name in args.sets:
        data, micro_tokens = sets[name]
        comparison = Comparison(name, args.model, data, micro_tokens, args.turns, args.sizes)
        for what in ("reference", "epoch"):
            comparison.run(what)
        figures |= comparison.figures
        found = in_fresh_process(efficiency, args.model, data, micro_tokens, max(3, args.turns))
        figures["unique_token_efficiency" + ("" if name == "deep" else f"_{name}")] = ratio(
            [packed for packed, _ in found],
            [dense for _, dense in found],
            f"packed {statistics.median(p for p, _ in found):.0f} tokens a second, dense causal rows of the same lengths "
            f"{statistics.median(d for _, d in found):.0f}",
            "share",
        )
    table = growth(args.model, args.deep_micro_tokens) if args.growth else []
    report(figures, args, growth=table)


if __name__ == "__main__":
    main()
