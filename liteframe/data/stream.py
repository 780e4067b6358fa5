"""Which sample comes when: a pure function of seed and position, so that a resumed run continues where it stopped."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from typing_extensions import override

Key = tuple[int, int]


class ClipStream(Sampler[list[Key]]):
    """Batches of keys `(epoch, index)` cut from one endless stream: a fresh permutation of the videos every epoch.

    Nothing is dropped at the end of an epoch: a batch may hold the last videos of one and the first of the next, so a
    folder of three videos can fill a batch of sixteen (with clips drawn differently each time, for the key differs).
    Batch b of rank r begins at number `(b * world_size + r) * batch_size`; nothing else is state.

    Args:
        videos: number of videos.
        batch_size: keys in a batch, on each rank.
        batches: batches that one pass of `iter()` ends after; the epoch that a training loop sees.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
        position: called when a pass starts; number of batches that were taken before. A pass ends at the next
            multiple of `batches`, so a pass that starts in the middle is shorter.
    """

    def __init__(
        self,
        videos: int,
        batch_size: int,
        batches: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], int] = lambda: 0,
    ):
        if min(videos, batch_size, batches, world_size) < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"videos={videos}, batch_size={batch_size}, batches={batches} and world_size={world_size} must be at "
                f"least 1, and rank={rank} below world_size"
            )
        self.videos, self.batch_size, self.batches = videos, batch_size, batches
        self.seed, self.rank, self.world_size, self.position = seed, rank, world_size, position
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Batches of a full pass."""
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        start = self.position()
        return (self.batch(number) for number in range(start, start - start % self.batches + self.batches))

    def batch(self, number: int) -> list[Key]:
        """Keys of batch `number`, counted from the start of the run."""
        first = (number * self.world_size + self.rank) * self.batch_size
        return [self._key(number) for number in range(first, first + self.batch_size)]

    def _key(self, number: int) -> Key:
        epoch, offset = divmod(number, self.videos)
        if epoch not in self._orders:
            # A batch moves forward; only the newest epochs are asked for again.
            old = {key: value for key, value in self._orders.items() if key == epoch - 1}
            self._orders = old | {epoch: self.order(epoch)}
        return epoch, int(self._orders[epoch][offset])

    def order(self, epoch: int) -> np.ndarray:
        """Numbers of the videos in the order in which an epoch shows them."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.videos)


class GroupedStream(ClipStream):
    """A ClipStream whose steps are sorted by length.

    Which samples make an optimizer step is the ClipStream's choice; within the step the shorter ones come first, so
    that what stands in one batch, and what the ranks take at the same time, is about as long. It is still a pure
    function of seed and position, and a step is the same however many ranks and turns share it.

    Args:
        *args: as ClipStream.
        step: samples in an optimizer step, over all ranks and turns.
        length: of the sample with a key, in tokens, roughly.
        **kwargs: as ClipStream.
    """

    def __init__(self, *args: Any, step: int, length: Callable[[Key], float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.step, self.length = step, length
        self._step: tuple[int, list[Key]] | None = None

    @override
    def _key(self, number: int) -> Key:
        step, offset = divmod(number, self.step)
        if self._step is None or self._step[0] != step:
            keys = [ClipStream._key(self, first) for first in range(step * self.step, (step + 1) * self.step)]
            self._step = (step, sorted(keys, key=self.length))
        return self._step[1][offset]


class BucketedStream(ClipStream):
    """A ClipStream whose steps hold videos of one bucket each, such as those of one frame size.

    Each bucket is an endless stream of its own, in which nothing is dropped either. A bucket gives a step whenever that
    many of its videos are due, at even distances, so that in an epoch every video is taken once, whatever its bucket;
    one with fewer videos than a step takes each of them several times at once, and comes once in several epochs. It is
    a pure function of seed and position, and a step is the same however many ranks and turns share it.

    Args:
        buckets: of each video.
        batch_size: keys in a batch, on each rank; where it does not divide `step`, a batch may hold parts of two steps.
        batches: as ClipStream.
        step: samples in an optimizer step, over all ranks and turns.
        **kwargs: as ClipStream.
    """

    def __init__(self, buckets: Sequence[Hashable], batch_size: int, batches: int, *, step: int, **kwargs: Any):
        super().__init__(len(buckets), batch_size, batches, **kwargs)
        self.step = step
        self.members = members_of(buckets)
        self._epoch: tuple[int, list[tuple[int, int]]] | None = None
        self._shuffled: dict[tuple[int, int], np.ndarray] = {}

    def due(self, epoch: int) -> int:
        """Steps that are due before an epoch."""
        return sum(epoch * len(members) // self.step for members in self.members)

    def place(self, step: int) -> tuple[int, int]:
        """Which bucket gives a step, counted from the start of the run, and how many it has given before."""
        # Each bucket is at most one step behind its share.
        latest = (step + 1 + len(self.members)) * self.step // self.videos + 1
        epoch = bisect_right(range(latest + 1), step, key=self.due) - 1
        if self._epoch is None or self._epoch[0] != epoch:
            steps = []
            for bucket, members in enumerate(self.members):
                given = range(epoch * len(members) // self.step, (epoch + 1) * len(members) // self.step)
                steps += [((number + 1) * self.step / len(members), bucket, number) for number in given]
            self._epoch = (epoch, [(bucket, number) for _, bucket, number in sorted(steps)])
        return self._epoch[1][step - self.due(epoch)]

    @override
    def _key(self, number: int) -> Key:
        step, offset = divmod(number, self.step)
        bucket, given = self.place(step)
        members = self.members[bucket]
        epoch, place = divmod(given * self.step + offset, len(members))
        return epoch, members[int(self._order(epoch, len(members))[place])]

    def _order(self, epoch: int, count: int) -> np.ndarray:
        if (epoch, count) not in self._shuffled:
            if len(self._shuffled) > 4 * len(self.members):  # a step spans two epochs of a bucket, or is few numbers
                self._shuffled.clear()
            self._shuffled[epoch, count] = np.random.default_rng([self.seed, epoch]).permutation(count)
        return self._shuffled[epoch, count]


def members_of(buckets: Sequence[Hashable]) -> list[list[int]]:
    """Numbers of the samples in each bucket, buckets in the order in which they appear."""
    members: dict[Hashable, list[int]] = {}
    for number, bucket in enumerate(buckets):
        members.setdefault(bucket, []).append(number)
    return list(members.values())


class FirstClips(Sampler[list[Key]]):
    """The first `clips` keys of a stream and no more, however it is cut: the last batches may be smaller or empty."""

    def __init__(self, stream: ClipStream, clips: int):
        self.stream, self.clips = stream, clips

    def __len__(self) -> int:
        """Batches on each rank."""
        return -(-self.clips // (self.stream.batch_size * self.stream.world_size))

    def __iter__(self) -> Iterator[list[Key]]:
        for number in range(len(self)):
            first = (number * self.stream.world_size + self.stream.rank) * self.stream.batch_size
            yield self.stream.batch(number)[: max(0, self.clips - first)]


class FixedBatches(Sampler[list[Key]]):
    """Every `world_size`-th of the videos of each bucket, once, in order, with epoch 0: for validation.

    All ranks get as many batches, since they synchronize; a rank with fewer videos of a bucket ends it with smaller or
    empty ones.

    Args:
        buckets: of each video; a batch holds videos of one.
        batch_size: keys in a batch.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(self, buckets: Sequence[Hashable], batch_size: int, *, rank: int = 0, world_size: int = 1):
        self.batches: list[list[Key]] = []
        for members in members_of(buckets):
            mine = members[rank::world_size]
            for first in range(0, -(-len(members) // world_size), batch_size):
                self.batches.append([(0, index) for index in mine[first : first + batch_size]])

    def __len__(self) -> int:
        """Batches on each rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)
