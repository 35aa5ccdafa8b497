"""A pool of sampled solutions that grows over days: what is sampled is kept in a file, and committed in small parts.

    python benchmarks/pool.py sample --model NAME --task FILE.jsonl --questions 0:300 --samples 16 --completions FILE
    python benchmarks/pool.py export --model NAME --task FILE.jsonl --questions 0:300 --samples 16 --completions FILE
    python benchmarks/pool.py import --model NAME --task FILE.jsonl --questions 0:300 --samples 16 --completions FILE

`sample` asks for just what `chain_of_thought` (greedy) and `self_consistency` ask for by default with seed 0, measured for
DeepConf too: none of them decodes anything over the same file (`model.completions`, the same dtype). Greedy ones come first,
then one sample of every question after the other. Killed at any moment, it leaves what can be used, and goes on when it is
run again; several may run at once (`--shard K/N`). `export` writes what the parts in `--pool` lack into a new part
(`parts/pool.py`: token ids exact, figures rounded to a byte). `import` keeps what the parts hold and the file does not, so
that another machine goes on where this one ended; the figures of these stay rounded.

`measure`, the default, says what a part with the samples of `--completions` takes, and how far its figures are off: the mean
entropy of a solution in percent (the worst one), the entropy of a token as a share of what is allowed, 3% or 0.003 nats.

`fit` says what the confidence of these solutions is worth (`evidence` of CaT), from the questions with all samples.

Figures: `bytes_a_token`, `solution_entropy_error`, `token_entropy_error`
Figures with fit: `evidence_log_loss`, `evidence_log_loss_default`
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from parts.measure import Figure, difference, options, report
from parts.pool import Key, key_of, keys_in, read_pool, write_pool

from caspo.core.errors import DataError
from caspo.core.shards import Shard
from caspo.engines.base import Completion, Engine, Request
from caspo.engines.kept import CompletionFile
from caspo.engines.memo import MemoEngine
from caspo.engines.opening import ModelSettings, identity_of, open_local, placed
from caspo.records import Question
from caspo.search import (
    ChainOfThought,
    ChainOfThoughtSettings,
    ConfidenceTree,
    ConfidenceTreeSettings,
    DeepConfOfflineSettings,
    SelfConsistencySettings,
)
from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import Told, fit_evidence, log_loss
from caspo.search.sampled import sample, several
from caspo.tasks.jsonl import JsonlTask
from caspo.tasks.stories import StoriesTask
from caspo.trees import TreeBuilder

ACTIONS = ("sample", "export", "import", "measure", "fit")
GREEDY = -1
"""The number of the sample that is greedy."""
TEMPERATURE = SelfConsistencySettings().temperature
POOL = Path(__file__).resolve().parent / "pool"


def plan(
    engine: Engine, model: str, questions: Sequence[Question], samples: int, temperature: float = TEMPERATURE
) -> dict[Key, Request]:
    """The requests of all samples: greedy ones first, then number by number, so that what is there is of all questions.
    ``model`` is the name by which parts know it."""
    trees = [TreeBuilder(question, engine.prompt(question.text), engine) for question in questions]
    once, top_k = ChainOfThoughtSettings(), DeepConfOfflineSettings().top_k
    drawn = SelfConsistencySettings(temperature=temperature)
    found = {}
    for number in range(GREEDY, samples):
        for tree in trees:
            if number == GREEDY:
                request = replace(sample(tree, once, ChainOfThought.name, 0, 0, once.temperature), top_k=top_k)
            else:
                (request,) = several(tree, drawn, 0, [number], top_k)
            found[key_of(model, tree.question.id, number, request)] = request
    return found


def decode(engine: Engine, kept: CompletionFile, asked: dict[Key, Request]) -> None:
    """Sample what is not kept yet."""
    missing = [request for request in asked.values() if kept.get(request) is None]
    print(f"{len(asked) - len(missing)} of {len(asked)} samples are there", flush=True)
    started, done, tokens = time.monotonic(), 0, 0

    def tell(place: int, completion: Completion) -> Sequence[Request]:
        nonlocal done, tokens
        done, tokens = done + 1, tokens + completion.decoded
        if done % 64 == 0 or done == len(missing):
            rate = tokens / (time.monotonic() - started)
            print(f"{done} of {len(missing)}: {tokens} tokens, {rate:.0f} a second", flush=True)
        return ()

    MemoEngine(engine, kept).generate(missing, tell)


def there(kept: CompletionFile, asked: dict[Key, Request]) -> dict[Key, Completion]:
    """What is kept, the samples of a question together: they are alike, and take the less room for it."""
    order = {name: place for place, name in enumerate(dict.fromkeys(key.question_id for key in asked))}
    keys = sorted(asked, key=lambda key: (order[key.question_id], key.number))
    found = {key: kept.get(asked[key]) for key in keys}
    return {key: completion for key, completion in found.items() if completion is not None}


def whole(kept: CompletionFile, asked: dict[Key, Request], questions: Sequence[Question]) -> list[Question]:
    """The questions of which everything asked for is kept: what a pool that still grows can tell."""
    missing = {key.question_id for key, request in asked.items() if kept.get(request) is None}
    return [question for question in questions if question.id not in missing]


def export(engine: Engine, kept: CompletionFile, asked: dict[Key, Request], folder: Path) -> None:
    """Write a new part with what those in the folder lack."""
    parts = sorted(folder.glob("part-*.parquet"))
    known = {key for part in parts for key in keys_in(part)}
    new = {key: completion for key, completion in there(kept, asked).items() if key not in known}
    if not new:
        print("The parts hold all that is there.")
        return
    number = 1 + max((int(part.stem.removeprefix("part-")) for part in parts), default=-1)
    part = folder / f"part-{number:03d}.parquet"
    write_pool(part, new)
    tokens = sum(completion.decoded for completion in new.values())
    print(f"{part}: {len(new)} samples, {tokens} tokens, {part.stat().st_size / tokens:.2f} bytes a token")


def take_in(engine: Engine, kept: CompletionFile, asked: dict[Key, Request], folder: Path) -> None:
    """Keep what the parts of the folder hold of what is asked for and the file does not have."""
    new = others = 0
    for part in sorted(folder.glob("part-*.parquet")):
        for key, completion in read_pool(part, engine.pieces).items():
            others += key not in asked
            if key in asked and kept.get(asked[key]) is None:
                kept.put(asked[key], completion)
                new += 1
    print(f"{new} samples are new; {others} in the parts are of other models, questions, numbers, prompts or settings.")


def measured(engine: Engine, kept: CompletionFile, asked: dict[Key, Request]) -> dict[str, Figure]:
    """What a part with all that is kept takes, and how far its figures are off."""
    exact = there(kept, asked)
    if not exact:
        raise DataError(f"{kept.path} holds none of these samples under the identity {kept.identity!r}. Sample them first.")
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.parquet"
        write_pool(part, exact)
        size, rounded = part.stat().st_size, read_pool(part, engine.pieces)
    tokens = sum(one.decoded for one in exact.values())
    means, worst = [], 0.0
    for key, one in exact.items():
        a, b = one.trace.entropy.astype(float), rounded[key].trace.entropy.astype(float)
        means.append(100 * abs(b.mean() / a.mean() - 1))
        worst = max(worst, float((np.abs(b - a) / np.maximum(0.03 * a, 0.003)).max()))
    typical = f"the worst; the median is {np.median(means):.2f}"
    return {
        "bytes_a_token": difference(size / tokens, None, None, "token ids and six figures of each", "bytes", tokens),
        "solution_entropy_error": difference(max(means), None, None, typical, "%", len(exact)),
        "token_entropy_error": difference(worst, None, None, "the worst", "of allowed", tokens),
    }


def fitted(told: Sequence[Told]) -> dict[str, Figure]:
    """The model that fits all questions, printed; its log loss on questions that it was not fitted on, and that of the
    numbers which CaT comes with."""
    print(fit_evidence(told).model_dump_json())
    halves = (told[0::2], told[1::2])
    fresh = [log_loss(fit_evidence(one), other) for one, other in (halves, halves[::-1])]
    note = "nats, fitted on one half of the questions and tried on the other, both ways"
    return {
        "evidence_log_loss": difference(float(np.mean(fresh)), min(fresh), max(fresh), note, "nats", len(told)),
        "evidence_log_loss_default": difference(
            log_loss(EvidenceModel(), told), None, None, "as it comes", "nats", len(told)
        ),
    }


def span(text: str) -> slice:
    """The questions of ``--questions``: FIRST:END, counted from 0."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:END, for example 0:300")
    return slice(int(found[1]), int(found[2]))


def main() -> None:
    """Do what was asked for."""
    parser = options(__doc__, "measure 4 samples of 8 stories by stories-tiny, and go the whole way with them")
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="measure")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b", help="a name or folder of a model")
    parser.add_argument("--task", type=Path, help="JSONL file of questions")
    parser.add_argument("--questions", type=span, metavar="FIRST:END", default=slice(None), help="of the file's; all")
    parser.add_argument("--samples", type=int, default=16, help="of a question, besides the greedy one")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="of the samples")
    parser.add_argument("--shard", type=Shard.parse, metavar="K/N", help="sample part K of N of the questions")
    parser.add_argument("--completions", type=Path, help="file of completions")
    parser.add_argument("--identity", help="under which they are kept, where that is not this model's (caspo.engines.kept)")
    parser.add_argument("--pool", type=Path, help="folder of the parts; benchmarks/pool/MODEL")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rows", type=int, default=256, help="samples decoded at once")
    args = parser.parse_args()
    if args.quick:
        quick(args)
        return
    if args.task is None or args.completions is None:
        parser.error(f"{args.action} needs --task and --completions")
    questions = JsonlTask(args.task).questions("test")[args.questions]
    if args.shard is not None:
        questions = args.shard.take(questions)
    engine, identity = opened(args)
    kept = CompletionFile(args.completions, args.identity or identity)
    name = Path(args.model).name
    asked = plan(engine, f"{name} {args.dtype}", questions, args.samples, args.temperature)
    folder = args.pool or POOL / name
    if args.action == "sample":
        decode(engine, kept, asked)
    elif args.action == "export":
        export(engine, kept, asked, folder)
    elif args.action == "import":
        take_in(engine, kept, asked, folder)
    elif args.action == "fit":
        cat = ConfidenceTree(ConfidenceTreeSettings(paths=args.samples + 1, temperature=args.temperature))
        known = whole(kept, asked, questions)
        report(fitted(cat.told(known, MemoEngine(engine, kept), JsonlTask(args.task).grade)), args)
    else:
        report(measured(engine, kept, asked), args)


def opened(args: argparse.Namespace) -> tuple[Engine, str]:
    """The model, and its identity in a file of completions."""
    given = {"name": args.model, "device": args.device, "dtype": args.dtype, "threads": args.threads}
    settings = placed(ModelSettings.model_validate({**given, "max_rows": args.rows}))
    engine = open_local(settings)
    return engine, identity_of(settings, engine)


def quick(args: argparse.Namespace) -> None:
    """All actions, on a small scale."""
    args.model = "stories-tiny"
    engine, identity = opened(args)
    asked = plan(engine, args.model, StoriesTask().questions("test", 8), 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here, elsewhere = (CompletionFile(folder / f"{side}.sqlite", identity) for side in ("here", "elsewhere"))
        decode(engine, here, asked)
        export(engine, here, asked, folder)
        take_in(engine, elsewhere, asked, folder)
        decode(engine, elsewhere, asked)
        report(measured(engine, here, asked), args)


if __name__ == "__main__":
    main()
