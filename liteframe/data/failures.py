"""Videos that could not be read: counted, listed once each, and a reason to stop when they become many."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

EXAMPLES = 5
ROW_OF_FAILURES = 100


class TooManyBadVideosError(RuntimeError):
    """More clips fail than the run allows."""


class FailureTally:
    """Counts attempts and failures of a run.

    Args:
        path: JSONL file that gets one row for each bad video and kind of failure.
        max_rate: largest allowed part of clips that fail, over the whole run.
        minimum: failures below this number never stop a run.
        remedy: the last line of the error.
    """

    def __init__(self, path: Path, max_rate: float, *, minimum: int = 3, remedy: str = ""):
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_failure_rate is {max_rate}; it is a part of all clips, within [0, 1]")
        self.path, self.max_rate, self.minimum, self.remedy = path, max_rate, minimum, remedy
        self.attempts = 0
        self.kinds: Counter[str] = Counter()
        self._known: set[tuple[str, str]] = set()
        self._examples: list[dict[str, str]] = []
        self._in_a_row = 0

    @property
    def failures(self) -> int:
        """Clips that failed."""
        return self.kinds.total()

    @property
    def rate(self) -> float:
        """Part of the clips that failed."""
        return self.failures / max(1, self.attempts)

    def record(self, good: int, failures: list[dict[str, str]]) -> None:
        """Count the clips of one batch.

        Raises:
            TooManyBadVideosError: the bound is exceeded, or the last hundred clips all failed (storage gone?).
        """
        self.attempts += good + len(failures)
        self._in_a_row = 0 if good else self._in_a_row + len(failures)
        fresh = []
        for failure in failures:
            self.kinds[failure["kind"]] += 1
            if (key := (failure["path"], failure["kind"])) not in self._known:
                self._known.add(key)
                fresh.append(failure)
        if fresh:
            self._write(fresh)
            self._examples = (self._examples + fresh)[:EXAMPLES]
        excess = self.failures >= self.minimum and self.rate > self.max_rate
        if failures and (excess or self._in_a_row >= ROW_OF_FAILURES):
            raise TooManyBadVideosError(self._message())

    def summary(self) -> dict[str, Any]:
        """Figures for the report."""
        return {"clips_read": self.attempts - self.failures, "clips_failed": self.failures, "kinds": dict(self.kinds)}

    def state_dict(self) -> dict[str, Any]:
        """Counts, so that a resumed run goes on counting."""
        return {"attempts": self.attempts, "kinds": dict(self.kinds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.attempts, self.kinds = state["attempts"], Counter(state["kinds"])
        if self.path.is_file():
            rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line]
            self._known = {(row["path"], row["kind"]) for row in rows}

    def _write(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        # One write in append mode: rows of several ranks do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def _message(self) -> str:
        lines = [
            f"{self.failures} of {self.attempts} clips could not be read "
            f"({self.rate:.0%}; data.max_failure_rate is {self.max_rate:.0%}):"
        ]
        lines += [f"  {row['path']}: {row['kind']}: {row['reason']} ({row['remedy']})" for row in self._examples]
        lines.append(f"All bad videos so far are listed in {self.path}. {self.remedy}".rstrip())
        return "\n".join(lines)
