"""Our grading beside published grades: of outputs of math-evaluation-harness (rho-1) and of Qwen2.5-Math's evaluation.

Each line of their JSONL files has the known answer (``gt``, and ``gt_cot`` or ``answer``, the solution that states it), the
outputs of a model (``code``) and whether their grader called each right (``score``). Nothing of it is shipped: give files.

    python benchmarks/parts/agreement.py outputs/*/*/*.jsonl --show 20

Prints, for each file, how many outputs both call right, both wrong, only they, only we; and disagreements to look at.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from caspo.answers import extract_answer, right_answer


def graded(path: Path) -> tuple[Counter[str], list[dict[str, str]]]:
    """How often we agree on the outputs of a file, and where we do not."""
    counts: Counter[str] = Counter()
    differ: list[dict[str, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solutions = [
            text for text in (row.get("answer"), row.get("gt_cot")) if text and ("####" in text or "\\boxed" in text)
        ]
        known = (extract_answer(solutions[0]) if solutions else None) or str(row["gt"])
        for text, pred, score in zip(row["code"], row["pred"], row["score"], strict=True):
            ours = extract_answer(text)
            right = right_answer(ours, known)
            counts[
                "both right" if right and score else "both wrong" if not right and not score else "we" if right else "they"
            ] += 1
            if right != bool(score):
                differ.append({"known": known, "ours": str(ours), "theirs": str(pred), "who": "we" if right else "they"})
    return counts, differ


def main() -> None:
    """Print a table, and some of the disagreements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="disagreements to print for each file")
    parser.add_argument("--json", type=Path, help="where all of them are written")
    options = parser.parse_args()
    found: dict[str, object] = {}
    print("| file | outputs | both right | both wrong | only they | only we |\n| --- | --- | --- | --- | --- | --- |")
    for path in options.files:
        counts, differ = graded(path)
        cells = [counts.total(), *(counts[kind] for kind in ("both right", "both wrong", "they", "we"))]
        print(f"| {'/'.join(path.parts[-3:-1])} | " + " | ".join(f"{cell:,}" for cell in cells) + " |", flush=True)
        for case in differ[: options.show]:
            print(f"    {case['who']:4} known {case['known']!r:40} read {case['ours']!r:40} they read {case['theirs']!r}")
        found[str(path)] = {"counts": counts, "differ": differ}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
