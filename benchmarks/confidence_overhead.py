"""What measuring the confidence of every token costs: the decode step with it and without it, in turns on the same logits.

Without it a step still has to choose its token: the most probable one, or a draw at a temperature. So the cost is the
difference of the two samplers' times over the time of the whole step without confidence. A step is one forward pass of the
model over the batch, and the choice; logits are those of the pass. On a GPU the names end in `gpu`; of a second model they
name it.

Figures: `confidence_overhead_*`, `confidence_overhead_*_greedy`
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from parts.forward import forward
from parts.measure import Figure, difference, options, report

from caspo.confidence.logits import _CPU_FLOATS, Distribution, _best, _block_sums
from caspo.core.errors import ModelError
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load, resolve
from caspo.engines.sampling import _drawn, draw


def plain(logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> torch.Tensor:
    """Tokens, and nothing measured; a few rows at a time and by the search of our own sampler, both faster than without."""
    size = logits_BV.shape[-1]
    step = max(1, _CPU_FLOATS // size) if logits_BV.is_cpu else len(logits_BV)
    room = torch.empty(min(step, len(logits_BV)), size, device=logits_BV.device)
    best, highest, blocks = [], [], []
    for logits_RV in torch.split(logits_BV, step):
        best.append(_best(logits_RV))
        if temperature == 0:
            continue
        highest.append(logits_RV.gather(-1, best[-1]).float())
        shifted_RV = torch.sub(logits_RV, highest[-1], out=room[: len(logits_RV)])
        blocks.append(_block_sums((shifted_RV.div_(temperature) if temperature != 1 else shifted_RV).exp_()))
    best_B = torch.cat(best)[:, 0]
    if temperature == 0:
        return best_B
    nothing_B, highest_B = torch.empty(0), torch.cat(highest)[:, 0]
    of = Distribution(best_B, highest_B, nothing_B, nothing_B, nothing_B, nothing_B, torch.cat(blocks))
    rows_B = torch.arange(len(logits_BV), device=logits_BV.device)
    return _drawn(of, logits_BV, rows_B, torch.full_like(uniform_B, temperature), uniform_B)


@torch.inference_mode()
def overhead(engine: HFEngine, batch: int, temperature: float, repeats: int, step_seconds: float) -> Figure:
    """The share that confidence adds to a step of ``step_seconds`` without sampling."""
    ids = torch.randint(engine.vocab_size, (batch, 8), generator=torch.Generator().manual_seed(0)).to(engine.device)
    logits_BV = engine.model(ids, logits_to_keep=1).logits[:, -1] * 1.0
    same_B = torch.full((batch,), temperature, device=engine.device)
    uniform_B = torch.rand(batch, generator=torch.Generator().manual_seed(0)).to(engine.device)
    ones, ranks, none = torch.ones(batch, device=engine.device), [1] * batch, [0] * batch

    def clock(run: Callable[[], object]) -> float:
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    shares, costs = [], []
    for _ in range(repeats):
        with_it = clock(lambda: draw(logits_BV, same_B, ones, uniform_B, ranks, none))
        without = clock(lambda: plain(logits_BV, temperature, uniform_B))
        costs.append((with_it, without))
        shares.append((with_it - without) / (step_seconds + without))
    spread = statistics.quantiles(shares, n=20)
    measured, bare = (statistics.median(column) * 1e3 for column in zip(*costs, strict=True))
    note = (
        f"{batch} rows, temperature {temperature:g}, V = {logits_BV.shape[-1]:,}: sampling "
        f"{measured:.2f} ms with, {bare:.2f} ms without, forward {step_seconds * 1e3:.1f} ms; 5% to 95%"
    )
    return difference(statistics.median(shares), spread[0], spread[-1], note, "share", repeats)


def installed(name: str) -> bool:
    """Whether there is such a model; if not, what brings it is printed."""
    try:
        resolve(name)
    except ModelError as error:
        print(f"{name} left out: {error}", flush=True)
        return False
    return True


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "the smallest model only")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma3-270m"], help="left out if not installed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens before the one that is decoded")
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    if args.quick:
        args.models, args.repeats = ["stories-tiny"], 10
    figures: dict[str, Figure] = {}
    for name in filter(installed, args.models):
        model, tokenizer = load(name, device=args.device, dtype=args.dtype)
        engine = HFEngine(model, tokenizer, name=name)
        seconds = forward(engine, args.batch, args.length, 10)
        for temperature in (0.8, 0.0):
            key = f"confidence_overhead_{torch.device(args.device).type.replace('cuda', 'gpu')}"
            key += "" if name == args.models[0] else f"_{name}"
            key += "" if temperature else "_greedy"
            figures[key] = overhead(engine, args.batch, temperature, args.repeats, seconds)
        del model, engine
    report(figures, args)


if __name__ == "__main__":
    main()
