"""CaT against public implementations on the same model, questions and machine: accuracy, tokens, seconds.

Sides run one after the other, each in a process of its own; what a side needs and lacks is said, and the side is left out.
No peer is a dependency of this project. optillm asks for an older transformers than ours and for much that these two
methods never touch; it runs beside ours if installed in a virtual environment of its own that has caspo, like this:

    pip install --no-deps optillm==0.4.0 flask blinker itsdangerous werkzeug openai jiter sniffio distro \\
        'z3-solver<=4.15.4.0' cerebras_cloud_sdk httpx httpcore h2 hpack hyperframe litellm tiktoken
    pip install 'its_hub[lm]==1.2.0' 'transformers[serving]'

The DeepConf recipe for `generate` lives on the Hugging Face hub: `--deepconf-recipe kashif/DeepConf`, or a folder with a
copy of it. It is code from there and runs on this machine: read it first.

All sides continue the same prompt tokens, with the same temperature, sampled from the whole distribution where a side lets
one choose, and the same limit of a path; answers are read and graded by the same functions. `--window` is the group of
DeepConf, whose default of 2048 tokens would never fill here.

Figures: `*_accuracy`, `*_tokens`, `*_seconds`
Figures with a peer installed: `cat_accuracy_minus_*`, `cat_token_ratio_vs_*`, `cat_time_ratio_vs_*`
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from parts.measure import Figure, difference, options, report, task_of
from parts.peer_sides import SIDES, Answered, Job, Messages
from parts.processes import in_fresh_process

from caspo.engines.models import resolve
from caspo.engines.prompts import INSTRUCTION, PLAIN_TEMPLATE, prompt_ids
from caspo.evaluate.estimates import bootstrap_ci, paired_difference, wilson
from caspo.records import Question
from caspo.tasks.base import Task


def prepare(model: str, folder: Path, temperature: float) -> Any:
    """Fill ``folder`` with the model as peers need it; the tokenizer of the model as it is.

    Peers take the prompt from the chat template and servers take sampling from `generation_config.json`, so both are written
    down: a template where the model has none, sampling at ``temperature`` from the whole distribution. Weights are links.
    """
    from transformers import AutoTokenizer

    source = resolve(model).resolve()
    for file in source.iterdir():
        if file.name not in {"generation_config.json", "chat_template.jinja"}:
            (folder / file.name).symlink_to(file)
    original = source / "generation_config.json"
    generation = json.loads(original.read_text(encoding="utf-8")) if original.is_file() else {}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    # From a model's config transformers copies no sampling; from a generation config it does.
    generation = {key: value for key, value in generation.items() if key != "_from_model_config"} | sampling
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    if template == PLAIN_TEMPLATE and getattr(tokenizer, "add_bos_token", False):
        template = "{{ bos_token }}" + template
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return tokenizer


def messages_for(tokenizer: Any, question: str, instruction: str, ids: tuple[int, ...]) -> Messages:
    """Chat messages that the template of ``tokenizer`` turns into exactly these tokens."""
    system, user = {"role": "system", "content": instruction}, {"role": "user", "content": question.strip()}
    joined = {"role": "user", "content": f"{instruction}\n\n{question.strip()}"}
    for messages in ([system, user], [joined], [user]):
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template that refuses system messages raises what it likes
            continue
        if tuple(tokenizer.encode(text, add_special_tokens=False)) == ids:
            return messages
    raise SystemExit(f"No chat messages give the prompt that our engine uses for {question[:60]!r}.")


def figures_of(found: Mapping[str, Answered], task: Task, questions: tuple[Question, ...]) -> dict[str, Figure]:
    """Every side's accuracy, tokens and seconds a question, and CaT against each peer question by question."""
    right = {name: _graded(task, questions, side) for name, side in found.items()}
    figures: dict[str, Figure] = {}
    n = len(questions)
    for name, side in found.items():
        interval = wilson(int(right[name].sum()), n)
        figures[f"{name}_accuracy"] = difference(float(right[name].mean()), *interval, side.note, "share", n)
        tokens = float(np.mean(side.tokens))
        figures[f"{name}_tokens"] = difference(tokens, *bootstrap_ci(side.tokens), "", "a question", n)
        together = len(side.seconds) == 1
        spread = (None, None) if together else bootstrap_ci(side.seconds)
        how = "all questions at once" if together else "one question at a time"
        figures[f"{name}_seconds"] = difference(sum(side.seconds) / n, *spread, how, "a question", n)
    for name, side in found.items():
        mine = "cat_batch" if name.endswith("_batch") else "cat"
        if not SIDES[name].peer or mine not in found:
            continue
        ours, pairs = found[mine], paired_difference(right[name], right[mine])
        note = f"McNemar p = {pairs.p_value:.3f}"
        figures[f"cat_accuracy_minus_{name}"] = difference(pairs.difference, pairs.low, pairs.high, note, "share", n)
        for what, a, b in (("token", ours.tokens, side.tokens), ("time", ours.seconds, side.seconds)):
            figures[f"cat_{what}_ratio_vs_{name}"] = difference(sum(a) / sum(b), *_ratio_interval(a, b), "", "x", n)
    return figures


def _ratio_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, float | None]:
    """Of the ratio of the sums, questions resampled; none for a single measurement."""
    if len(a) == 1:
        return None, None
    return bootstrap_ci(np.array([a, b], float).T, statistic=lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()))


def _graded(task: Task, questions: tuple[Question, ...], side: Answered) -> np.ndarray[Any, Any]:
    return np.array([task.grade(q, answer) for q, answer in zip(questions, side.answers, strict=True)], float)


def missing(name: str, recipe: str | None) -> str | None:
    """Why a side cannot run, with the way to change that; None if it can."""
    side = SIDES[name]
    if name == "deepconf_recipe" and recipe is None:
        return "needs the recipe: --deepconf-recipe kashif/DeepConf, or the folder of a copy"
    if side.module is not None and importlib.util.find_spec(side.module) is None:
        return f"not installed; {side.install}"
    return None


def main() -> None:
    """Run every side that can run, and print the figures."""
    parser = options(__doc__, "5 questions, and each implementation once")
    parser.add_argument("--model", default="stories-tiny", help="a name or folder of a model")
    parser.add_argument("--task", default="1,2,3", help="levels of stories, or a JSONL file of questions")
    parser.add_argument("--instruction", default=INSTRUCTION, help="system message of the prompt")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--samples", type=int, default=10, help="paths of a question, for those that sample several")
    parser.add_argument("--max-tokens", type=int, default=160, help="of a path")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--window", type=int, default=32, help="tokens of a group, for DeepConf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--deepconf-recipe", help="name on the hub or folder of the DeepConf generate recipe")
    parser.add_argument("--server", help="URL (.../v1) of an OpenAI-compatible server that has --model under that name")
    args = parser.parse_args()
    if args.quick:
        args.questions = 5
        args.sides = [name for name in args.sides if not name.endswith(("_batch", "_stopping"))]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    task = task_of(args.task)
    questions = tuple(task.questions("test", args.questions, args.seed))
    found: dict[str, Answered] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = prepare(args.model, folder, args.temperature)
        prompts = tuple(prompt_ids(tokenizer, q.text, args.instruction) for q in questions)
        tokenizer.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        messages = tuple(
            messages_for(tokenizer, q.text, args.instruction, ids) for q, ids in zip(questions, prompts, strict=True)
        )
        job = Job(
            args.model, temporary, questions, prompts, messages, args.instruction, args.samples, args.max_tokens,
            args.temperature, args.window, args.seed, args.deepconf_recipe, args.server,
        )  # fmt: skip
        for name in args.sides:
            reason = missing(name, args.deepconf_recipe)
            if reason is None:
                try:
                    found[name] = in_fresh_process(SIDES[name].run, job)
                except Exception as error:  # one peer's failure must not cost the figures of the others
                    reason = f"failed: {type(error).__name__}: {error}"
            if reason is not None:
                left_out[name] = reason
                print(f"{name} left out: {reason}", flush=True)
                continue
            side, share = found[name], _graded(task, questions, found[name]).mean()
            tokens, seconds = np.mean(side.tokens), sum(side.seconds) / len(questions)
            print(f"{name}: {share:.1%}, {tokens:.1f} tokens, {seconds:.3f} s a question; {side.note}", flush=True)
    report(figures_of(found, task, questions), args, left_out=left_out)


if __name__ == "__main__":
    main()
