"""How wide the entropy interval from the k most probable tokens is, and how often pruning on it decides otherwise.

Solutions are sampled from a real model; every token's whole distribution is computed again in one forward pass, and from it
the exact entropy H, the bounds that `entropy_bounds` gives from the k best tokens, and the plain sum over those k, which is
what other programs take for the entropy.

A decision is: at the end of a step, is the path's cumulative confidence (product of its steps' exp(-mean H)) under the
threshold? CaT prunes by the lower bound of the entropy: it may keep a path that the exact entropy would prune
(kept), and never prunes one that the exact entropy would keep (lost, which must be 0). Intervals: resampled questions.

Figures: `bound_width_k*`, `bound_width_p90_k*`, `exact_minus_lower_k*`, `upper_minus_exact_k*`, `exact_minus_plain_k*`,
`prune_kept_*_k*`, `prune_plain_*_k*`
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from parts.measure import Figure, difference, options, report

from caspo.confidence import entropy_bounds
from caspo.engines.base import Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.evaluate.estimates import bootstrap_ci
from caspo.evaluate.intervals import estimate_mean
from caspo.evaluate.resampling import draw_questions
from caspo.steps import split_tokens
from caspo.tasks.stories import StoriesTask

Floats = NDArray[np.float64]
KS = (5, 20, 100)
THRESHOLDS = (0.05, 0.2, 0.5)
"""The first one is CaT's default."""


class Measured(NamedTuple):
    """One sampled solution: per token (T,) the exact entropy and per k lower, upper and plain, nats; where its steps end."""

    question: int
    exact: Floats
    lower: dict[int, Floats]
    upper: dict[int, Floats]
    plain: dict[int, Floats]
    spans: list[tuple[int, int]]

    def confidence(self, entropy: Floats) -> Floats:
        """(S,) cumulative confidence at the end of every step."""
        return np.exp(-np.cumsum([entropy[start:end].mean() for start, end in self.spans]))


@torch.inference_mode()
def measured(engine: HFEngine, question: int, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Measured:
    """One solution by its whole distributions, in float64."""
    logits_TV = engine.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logs_TV = torch.log_softmax(logits_TV.double(), dim=-1)
    exact_T = -(logs_TV.exp() * logs_TV).sum(-1).numpy()
    best_TK = logs_TV.topk(max(KS), dim=-1).values.numpy()
    lower, upper, plain = {}, {}, {}
    for k in KS:
        lower[k], upper[k] = entropy_bounds(best_TK[:, :k], logs_TV.shape[-1])
        plain[k] = -(np.exp(best_TK[:, :k]) * best_TK[:, :k]).sum(-1)
    return Measured(question, exact_T, lower, upper, plain, split_tokens(engine.pieces(ids)) or [(0, len(ids))])


def figures(paths: list[Measured]) -> dict[str, Figure]:
    """All figures; each with its interval."""
    tokens = np.concatenate([np.full(len(p.exact), p.question) for p in paths])
    exact = np.concatenate([p.exact for p in paths])
    found: dict[str, Figure] = {}
    where = f"tokens of {len(set(tokens.tolist()))} questions"

    def add(name: str, values: Floats, groups: NDArray[Any], note: str, unit: str, q: float | None = None) -> None:
        if unit == "share":
            of, draws = groups.astype(np.intp), draw_questions(int(groups.max()) + 1)
            low, high = estimate_mean(values, np.ones(len(values)), of, draws).interval or (None, None)
            found[name] = difference(float(values.mean()), low, high, note, unit, len(values))
            return
        if q is None:
            low, high = bootstrap_ci(values, groups, n_boot=500)
            found[name] = difference(float(values.mean()), low, high, note, unit, len(values))
            return
        low, high = bootstrap_ci(values, groups, lambda rows: float(np.quantile(rows, q)), n_boot=200)
        found[name] = difference(float(np.quantile(values, q)), low, high, note, unit, len(values))

    for k in KS:
        lower, upper, plain = (np.concatenate([getattr(p, w)[k] for p in paths]) for w in ("lower", "upper", "plain"))
        outside = int(((exact < lower - 1e-6) | (exact > upper + 1e-6)).sum())
        add(f"bound_width_k{k}", upper - lower, tokens, f"mean; {where}; {outside} exact entropies outside", "nats")
        add(f"bound_width_p90_k{k}", upper - lower, tokens, "90th percentile", "nats", 0.9)
        add(f"exact_minus_lower_k{k}", exact - lower, tokens, "mean", "nats")
        add(f"upper_minus_exact_k{k}", upper - exact, tokens, "mean", "nats")
        add(f"exact_minus_plain_k{k}", exact - plain, tokens, "mean; the plain sum over the k", "nats")
    ends = np.concatenate([np.full(len(p.spans), p.question) for p in paths])
    for threshold in THRESHOLDS:
        truth = np.concatenate([p.confidence(p.exact) < threshold for p in paths])
        at = f"threshold {threshold:g}: {int(truth.sum())} steps end under it"
        for k in KS:
            ours, theirs = (
                np.concatenate([p.confidence(getattr(p, which)[k]) < threshold for p in paths])
                for which in ("lower", "plain")
            )
            lost = int((ours & ~truth).sum())
            add(
                f"prune_kept_{threshold:g}_k{k}", (truth & ~ours).astype(np.float64), ends,
                f"{at}; {int((truth & ~ours).sum())} kept by the bound, {lost} lost", "share",
            )  # fmt: skip
            add(
                f"prune_plain_{threshold:g}_k{k}", (truth != theirs).astype(np.float64), ends,
                f"{int((truth != theirs).sum())} decided otherwise by the plain sum", "share",
            )  # fmt: skip
    return found


def main() -> None:
    """Sample, measure, print."""
    parser = options(__doc__, "the small model, few questions")
    parser.add_argument("--model", default="smollm2-135m-stories", help="a name or folder of a model")
    parser.add_argument("--questions", type=int, default=60, help="of stories, levels 1 to 3")
    parser.add_argument("--samples", type=int, default=4, help="solutions of a question, at temperature 1")
    parser.add_argument("--max-tokens", type=int, default=160, help="of a solution")
    args = parser.parse_args()
    if args.quick:
        args.model, args.questions = "stories-tiny", 20
    model, tokenizer = load(args.model)
    engine = HFEngine(model, tokenizer, name=args.model)
    questions = StoriesTask((1, 2, 3)).questions("test", args.questions, 0)
    prompts = [engine.prompt(question.text) for question in questions]
    requests = [Request(prompt, seed, max_new_tokens=args.max_tokens) for prompt in prompts for seed in range(args.samples)]
    completions = engine.generate(requests)
    engine.forget()
    paths = [
        measured(engine, place // args.samples, request.prefix_ids, completion.token_ids)
        for place, (request, completion) in enumerate(zip(requests, completions, strict=True))
    ]
    report(figures(paths), args)


if __name__ == "__main__":
    main()
