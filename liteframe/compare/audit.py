"""What a table of results is worth: whether sizes of a model agree, and which questions need a video (Apollo).

python -m liteframe.compare.audit RUN RUN ... [-o audit.json]

RUN is a folder of `liteframe compare`, each with another Video LLM and the same questions; with 1 among its `--frames`,
a single frame is told from a video. Source: arXiv 2412.10360, sections on scaling consistency and ApolloBench.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.compare.systems import BLIND, NONE
from liteframe.files import write_json
from liteframe.texts import read_json, read_jsonl

LOOKS = ("text", "frame", "video")  # what a model was shown
FEWEST = 3  # variants of which a correlation is told
Answers = Mapping[str, Mapping[str, Any]]  # by question: "right", and the "choice" that was made


def agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """R² of Pearson's correlation between the scores of the same variants at two sizes; NaN where a size ties all.

    Raises:
        ValueError: there are not as many, or fewer than 3.
    """
    if len(one) != len(other) or len(one) < FEWEST:
        raise ValueError(f"{len(one)} and {len(other)} scores: the same variants are needed, {FEWEST} at least")
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1] ** 2)


def scaling_consistency(scores: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """How well each size's scores tell another's, by R² over the variants that both have.

    Args:
        scores: of variants, by size: `{"1B": {"wap": 50.0, ...}, "8B": {...}}`.

    Returns:
        a row for each pair of sizes that has 3 variants: "sizes", "variants" and "r2".
    """
    rows = []
    for one, other in combinations(scores, 2):
        both = [variant for variant in scores[one] if variant in scores[other]]
        if len(both) >= FEWEST:
            r2 = agreement(*([scores[size][variant] for variant in both] for size in (one, other)))
            rows.append({"sizes": [one, other], "variants": len(both), "r2": r2})
    return rows


def audit(models: Mapping[str, Mapping[str, Answers]]) -> dict[str, Any]:
    """Which questions can be answered without the video, and on which models differ.

    Args:
        models: by name, answers to the same questions by what was shown: "text" (no video), "frame" (a single one, if
            that was asked) and "video".

    Returns:
        "accuracy" by model and what was shown; "questions": the share of models that were right, by what was shown, and
        the "entropy" of their choices with the video, in bits; "kept": questions that at most half of the models answer
        from text, and from one frame, those first on which models differ most.

    Raises:
        ValueError: models were asked different questions.
    """
    ids = list(next(iter(models.values()))["video"])
    if not ids or any(of.keys() != set(ids) for looks in models.values() for of in looks.values()):
        raise ValueError("an audit needs models that were asked the same questions, one at least")
    questions: dict[str, dict[str, float]] = {}
    for question in ids:
        shares = {
            look: float(np.mean([looks[look][question]["right"] for looks in models.values() if look in looks]))
            for look in LOOKS
            if any(look in looks for looks in models.values())
        }
        chosen = Counter(str(looks["video"][question].get("choice")) for looks in models.values())
        parts = np.array(list(chosen.values())) / chosen.total()
        questions[question] = {**shares, "entropy": abs(float(-(parts * np.log2(parts)).sum()))}
    kept = [name for name, of in questions.items() if max(of.get("text", 0.0), of.get("frame", 0.0)) <= 0.5]
    return {
        "accuracy": {
            name: {look: float(np.mean([row["right"] for row in of.values()])) for look, of in looks.items()}
            for name, looks in models.items()
        },
        "questions": questions,
        "kept": sorted(kept, key=lambda name: -questions[name]["entropy"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Audit folders of `liteframe compare`, print what came out and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of `liteframe compare`")
    parser.add_argument("-o", "--output", type=Path, help="JSON file with all of it")
    args = parser.parse_args(argv)
    records = {str(run): read_json(run / "compare.json", "name a folder of `liteframe compare`") for run in args.runs}
    scores = {
        name: {f"{row['system']}-{row['frames']}": row["accuracy"] for row in record["points"] if "accuracy" in row}
        for name, record in records.items()
    }
    found = {"scaling_consistency": scaling_consistency(scores), **audit({str(run): _looks(run) for run in args.runs})}
    for name, accuracy in found["accuracy"].items():
        print(f"{name}: " + ", ".join(f"{look} {100 * value:.1f} %" for look, value in accuracy.items()))
    print(f"{len(found['kept'])} of {len(found['questions'])} questions need more than text or one frame")
    for row in found["scaling_consistency"]:
        print(f"{' and '.join(row['sizes'])}: R² {row['r2']:.3f} over {row['variants']} systems")
    if args.output is not None:
        write_json(args.output, found)


def _looks(run: Path) -> dict[str, Answers]:
    """Answers of the dense model of a comparison, by what it was shown."""
    frames = sorted(int(path.name.rpartition("-")[2]) for path in (run / "answers").glob(f"{NONE}-*"))
    folders = {"text": next((run / "answers").glob(f"{BLIND}-*")), "video": run / "answers" / f"{NONE}-{frames[-1]}"}
    if frames[0] == 1 < frames[-1]:
        folders["frame"] = run / "answers" / f"{NONE}-1"
    return {look: _rows(folders[look]) for look in LOOKS if look in folders}


def _rows(folder: Path) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for file in sorted(folder.glob("answers*.jsonl")):
        for _, row in read_jsonl(file):
            if row.get("reply") is not None or row["id"] not in rows:
                rows[row["id"]] = row
    return rows


if __name__ == "__main__":
    main()
