"""What the reference of TPO makes of each answer, kept in a file, so that no later epoch or run computes it again."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from liteframe.align.batch import ChatBatch
from liteframe.files import check_output
from liteframe.journal import SharedJournal

OPTION = "model.reference_log_probs"


class ReferenceLogProbs:
    """Summed log-probabilities of pairs of answers, by what the language model reads of a pair (`ChatBatch.pairs`).

    The first row says which reference they are of, every other one what it gives for a pair. Ranks share the file.

    Args:
        path: of a JSONL file, made if there is none.
        reference: all that the log-probabilities depend on beside the pair, by the settings that name it.

    Raises:
        ValueError: the file is of another reference, is none of these, or cannot be written.
    """

    def __init__(self, path: str, reference: Mapping[str, str | None]):
        check_output(path)
        self._journal = SharedJournal(Path(path), lambda row: row.get("pair"))
        self._journal.read()
        head = {"reference": dict(reference)}
        if not self._journal.rows:
            self._journal.add([head])
        noted = self._journal.rows[None].get("reference") if None in self._journal.rows else None
        if not isinstance(noted, dict):
            raise ValueError(f"{OPTION}: {path} holds something else; name a file of its own, which is made")
        others = [f"{name} is {noted.get(name)} there and {value} here" for name, value in reference.items()
                  if noted.get(name) != value]  # fmt: skip
        if others:
            raise ValueError(
                f"{OPTION}: {path} is of another reference: {'; '.join(others)}. Bring that one back, or name another "
                "file, which is made"
            )

    def of(self, batch: ChatBatch, compute: Callable[[], Tensor]) -> Tensor:
        """Log-probabilities of a batch's answers, float32 [2*B] on its device, each pair's chosen one before the other.

        Args:
            batch: of pairs.
            compute: the same from the reference itself; it is called if one of the pairs is new, whose values are kept.
        """
        known, fresh = self._journal.rows, dict[str, Sequence[float]]()
        if not all(pair in known for pair in batch.pairs):
            fresh = dict(zip(batch.pairs, compute().view(len(batch.pairs), -1).tolist(), strict=True))
            self._journal.add(
                [{"pair": pair, "log_probs": both} for pair, both in fresh.items() if all(map(math.isfinite, both))]
            )
        rows = [known[pair]["log_probs"] if pair in known else fresh[pair] for pair in batch.pairs]
        # Without waiting for the device, which a copy from ordinary memory would.
        return torch.tensor(rows).flatten().to(batch.input_ids.device, non_blocking=True)


def digest(value: object) -> str:
    """A short hash of what is JSON, or of its text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
