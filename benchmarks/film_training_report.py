"""What benchmarks/film_training.py has found: accuracies, differences with intervals, and verdicts, as two tables.

A claim holds where the 95 % interval of the difference lies above zero and is refuted where it lies below; else nothing
is shown. Questions are paired; what is independent are films, with all their seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from claims_report import HOLDS, OPEN, REFUTED
from claims_table import OTHER
from film_training_plan import BASE, SCENE_ARMS, SEEDS, TEST_FILMS

from liteframe.evaluate.intervals import Difference, paired_difference, share

PAST, PRESENT, SCENES = "past", "present", "scenes"
COUNTS = "REC"  # among as many numbers as a film has scenes: reported apart
APART = (COUNTS, "SSR", "CRR")  # the film model has not learned the last two
MARKERS = ("<!-- film claims -->\n", "<!-- /film claims -->\n")
Way = tuple[str, str]  # an arm, and the memory it is asked with


class Claim(NamedTuple):
    """That one is right more often than another, about the past, the present, or videos of one scene."""

    whose: str
    text: str
    one: Way
    other: Way
    kind: str = PAST


ALL, PLAIN, SELECTED = (BASE, "all"), "more alignment", "selection"
DIRECT, CURRICULUM, LONG = "summary, direct", "summary, curriculum", "summary, direct, longer"
ANSWERS, MEANS = "chosen answers", (PLAIN, "average")
CLAIMS = (
    Claim("TPO", "TPO is better than fine-tuning on the chosen answers", ("TPO", "all"), (ANSWERS, "all")),
    Claim("TPO", "the same in the present", ("TPO", "all"), (ANSWERS, "all"), PRESENT),
    Claim("TPO", "the same after four times the steps", ("TPO, longer", "all"), (f"{ANSWERS}, longer", "all")),
    Claim("TPO", "TPO gains on the model that its pairs are of", ("TPO", "all"), ALL),
    Claim("TPO", "the same in the present", ("TPO", "all"), ALL, PRESENT),
    Claim("TPO", "TPO gains after four times the steps", ("TPO, longer", "all"), ALL),
    Claim("TPO", "four times the steps in the present", ("TPO, longer", "all"), ALL, PRESENT),
    Claim("Video-XL", "summary tokens tell more than means of 8 slots", (DIRECT, "summary"), MEANS),
    Claim("Video-XL", "summary tokens tell more than StreamMem's saliency", (DIRECT, "summary"), (PLAIN, "saliency")),
    Claim("Video-XL", "summary tokens tell more than a recent window", (DIRECT, "summary"), (PLAIN, "window")),
    Claim("Video-XL", "summary tokens cost nothing in the present, against a window", (DIRECT, "summary"),
          (PLAIN, "window"), PRESENT),
    Claim("Video-XL", "after four times the steps summary tokens tell more than means", (LONG, "summary"), MEANS),
    Claim("Video-XL", "four times the steps help summary tokens", (LONG, "summary"), (DIRECT, "summary")),
    Claim("Video-XL", "ratios that rise (2 and 4, 8, 16) are better than 8 from the start, asked at 8",
          (CURRICULUM, "summary"), (DIRECT, "summary")),
    Claim("Video-XL", "rising ratios are better, asked at 16", (CURRICULUM, "summary, 16"), (DIRECT, "summary, 16")),
    Claim("VideoStreaming", "a trained selection of clips is better than attention's, untrained",
          (SELECTED, "learned clips"), (PLAIN, "clips, attention")),
    Claim("VideoStreaming", "a trained selection is better than the last clips", (SELECTED, "learned clips"),
          (PLAIN, "clips, last")),
    Claim("VideoStreaming", "after four times the steps it is better than attention's",
          (f"{SELECTED}, longer", "learned clips"), (PLAIN, "clips, attention")),
    Claim("VideoStreaming", "untrained: attention's selection is better than the last clips",
          (PLAIN, "clips, attention"), (PLAIN, "clips, last")),
    Claim("VideoStreaming", "memories that are handed on from clip to clip help", (SELECTED, "learned clips"),
          ("selection, clips alone", "learned clips")),
    Claim("MA-LMM", "a trained Q-Former tells more than merged neighbors (MBC)", ("Q-Former", "qformer"),
          (PLAIN, "bank")),
    Claim("ours", "merged neighbors (MBC) tell more than means of 8 slots", (PLAIN, "bank"), MEANS),
    Claim("ours", "a soft target from dense frames helps LMA", ("distillation", SCENES), ("labels alone", SCENES),
          SCENES),
)  # fmt: skip


class Found(NamedTuple):
    """The record, by what was asked.

    Attributes:
        questions: the film (scenes, world, number), the task, whether it is about the past, number of candidates.
        rows: by arm and seed.
    """

    questions: Sequence[tuple[tuple[int, ...], str, bool, int]]
    rows: Mapping[tuple[str, int], Mapping[str, Any]]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Found:
        """That of film_training.json."""
        words = [question.split() for question in record["questions"]]
        questions = [(tuple(map(int, film)), task, past == "1", int(count)) for *film, task, past, count in words]
        return cls(questions, {(r["cell"]["name"], r["cell"]["seed"]): r for r in record["cells"]})

    def seeds(self, way: Way) -> list[int]:
        """Those that an arm was trained and asked with."""
        return [seed for seed in SEEDS if way[1] in self.rows.get((way[0], seed), {"right": ()})["right"]]

    def asked(self, kind: str, scenes: Sequence[int], right: str) -> list[int]:
        """Numbers of the questions of a kind about films of so many scenes, out of as many as there are answers."""
        if kind == SCENES:
            return [*range(len(right))]
        some = [
            (number, task, past) for number, (film, task, past, _) in enumerate(self.questions) if film[0] in scenes
        ]
        if kind == COUNTS:
            return [number for number, task, _ in some if task == COUNTS]
        return [number for number, task, past in some if task not in APART and past == (kind == PAST)]

    def answers(self, way: Way, seed: int, kind: str, scenes: Sequence[int]) -> tuple[list[bool], list[Any]]:
        """Which of them are right, and the film of each."""
        right = self.rows[way[0], seed]["right"][way[1]]
        numbers = self.asked(kind, scenes, right)
        films = [number // 5 if kind == SCENES else self.questions[number][0] for number in numbers]
        return [right[number] == "1" for number in numbers], films

    def accuracy(
        self, way: Way, kind: str, scenes: Sequence[int] = tuple(TEST_FILMS), seeds: Sequence[int] | None = None
    ) -> str:
        """In %, with its interval, over these seeds or all."""
        parts = [self.answers(way, seed, kind, scenes) for seed in (self.seeds(way) if seeds is None else seeds)]
        if not parts or not parts[0][0]:
            return ""
        found = share([one for right, _ in parts for one in right], [film for _, films in parts for film in films])
        return f"{100 * found.accuracy:.1f} ({100 * found.low:.0f} to {100 * found.high:.0f})"

    def pairs(self, one: Way, other: Way) -> list[tuple[int, int]]:
        """Seeds that are compared: those that both have; the shared start has one, for all."""
        ours, theirs = self.seeds(one), self.seeds(other)
        if other[0] == BASE:
            return [(seed, theirs[0]) for seed in ours if theirs]
        return [(seed, seed) for seed in ours if seed in theirs]

    def less(self, one: Way, other: Way, kind: str) -> tuple[Difference, list[Difference]]:
        """One less the other over the seeds that are compared, and by seed."""
        scenes = tuple(TEST_FILMS)
        parts = [
            (*self.answers(one, mine, kind, scenes), self.answers(other, yours, kind, scenes)[0])
            for mine, yours in self.pairs(one, other)
        ]
        whole = paired_difference(*([x for part in parts for x in part[i]] for i in (0, 2, 1)))
        return whole, [paired_difference(right, wrong, films) for right, films, wrong in parts]


def judged(found: Difference) -> str:
    """A verdict by the interval."""
    return HOLDS if found.low > 0 else REFUTED if found.high < 0 else OPEN


def figure(found: Difference, by_seed: Sequence[Difference]) -> str:
    """In points."""
    text = f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    seeds = ", ".join(f"{100 * one.difference:+.1f}" for one in by_seed)
    return f"{text}; by seed {seeds}" if len(by_seed) > 1 else f"{text}; one seed"


def claim_rows(record: Mapping[str, Any]) -> list[str]:
    """A row of a table for each claim that was tried."""
    measured, rows = Found.of(record), []
    for whose, text, one, other, kind in CLAIMS:
        pairs = measured.pairs(one, other)
        if not pairs:
            continue
        found = measured.less(one, other, kind)
        about = {PAST: "past: ", PRESENT: "present: ", SCENES: ""}[kind]
        ours, theirs = (
            measured.accuracy(way, kind, seeds=seeds).split()[0]
            for way, seeds in zip((one, other), zip(*pairs, strict=True), strict=True)
        )
        verdict = judged(found[0]) + ("" if len(found[1]) == len(SEEDS) else f", {len(found[1])} of {len(SEEDS)} seeds")
        rows.append(f"| {whose} | {text} | {OTHER} | {about}{ours} against {theirs} %: {figure(*found)} | {verdict} |")
    return rows


def table(record: Mapping[str, Any]) -> str:
    """The page."""
    measured, setup = Found.of(record), record["setup"]
    films: dict[int, int] = {}
    for scenes in TEST_FILMS:
        films[scenes] = len({film for film, *_ in measured.questions if film[0] == scenes})
    seconds = sum(row["cpu_seconds"] for row in record["cells"])
    shown = ", ".join(f"{count} of {scenes} scenes" for scenes, count in films.items())
    lines = [
        "# Trained methods for long videos on toy films\n",
        f"{record['date'][:10]}, {record['processor']}, one thread, {seconds / 60:.0f} CPU minutes, torch "
        f"{record['versions']['torch']}: `python benchmarks/film_training.py`. All go on from one alignment of "
        f"{setup['base_steps']} steps with a student of toyworld, on {setup['films']} films of two and three scenes; a "
        f"scene is 8 s, 64 tokens. Runs have {setup['steps']} steps of {setup['batch']} films, those of summary tokens "
        f"and of the Q-Former twice as many; TPO and chosen answers {setup['pair_steps']} steps of "
        f"{setup['pair_batch']} pairs; longer ones four times that. All are asked the same {len(measured.questions)} "
        f"questions about held-out films ({shown}). Accuracy in % with its "
        "95 % interval, films what is independent. *past*: EPM, ASI and HLD; *present*: ATR, OJR and STU; counts (REC) "
        "apart; SSR and CRR, whether a star flashes or has flashed, are left out, since the film model has not learned "
        "them. *entries*: what of a film the language model reads for a question, labels included.\n",
        "| trained | memory | seeds | entries | past | present | counts | "
        + " | ".join(f"past, {scenes} scenes" for scenes in TEST_FILMS) + " |",
        "|---|---|---:|---:|---|---|---|" + "---|" * len(TEST_FILMS),
    ]  # fmt: skip
    ways = {(name, system): None for name, _ in measured.rows for system in measured.rows[name, _]["right"]}
    for way in ways:
        if way[1] == SCENES:
            continue
        seeds = measured.seeds(way)
        entries = sum(measured.rows[way[0], seed]["entries"][way[1]] for seed in seeds) / len(seeds)
        cells = [*way, str(len(seeds)), f"{entries:.0f}"]
        cells += [measured.accuracy(way, kind) for kind in (PAST, PRESENT, COUNTS)]
        cells += [measured.accuracy(way, PAST, [scenes]) for scenes in TEST_FILMS]
        lines.append(f"| {' | '.join(cells)} |")
    chance = {
        kind: 100 * sum(1 / measured.questions[n][3] for n in numbers) / max(1, len(numbers))
        for kind in (PAST, PRESENT, COUNTS)
        for numbers in [measured.asked(kind, tuple(TEST_FILMS), "")]
    }
    lines.append(f"| by chance | | | | {' | '.join(f'{chance[kind]:.0f}' for kind in chance)} | | | |")
    lines += ["", "| LMA on videos of one scene | seeds | accuracy |", "|---|---:|---|"]
    lines += [
        f"| {name} | {len(measured.seeds((name, SCENES)))} | {measured.accuracy((name, SCENES), SCENES)} |"
        for name in SCENE_ARMS
        if measured.seeds((name, SCENES))
    ]
    lines += [
        "",
        "## Claims",
        "",
        "| whose | claim | refuted if | figure, in points | verdict |",
        "|---|---|---|---|---|",
    ]
    counts = next((row["pairs"] for row in record["cells"] if "pairs" in row), None)
    told = [] if counts is None else ["", f"Pairs: {counts['kept']} of {counts['tried']} tries were kept."]
    return "\n".join([*lines, *claim_rows(record), *told, ""])


def filled(text: str, record: Mapping[str, Any]) -> str:
    """docs/claims.md with the claims of another record in its second table."""
    before, rest = text.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    head = ["| whose | claim | refuted if | figure, in points | verdict |", "|---|---|---|---|---|"]
    return before + MARKERS[0] + "\n".join([*head, *claim_rows(record), ""]) + MARKERS[1] + after
