"""Which clips make up which batch: a pure function of the seed and the step.

Every process computes the same plan and reads its own part of each batch, so all of them meet in the same static
shape at every step, and resuming needs no more than the number of the next step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from mecap_jax.config import Bucket
from mecap_jax.data.fitting import fits


class BatchPlan:
    """Shuffled batches for training: each epoch visits every clip at most once, grouped by bucket.

    Rows that do not fill a batch of their own bucket move up into the next larger one; what is left in the largest
    (less than a batch) waits for another epoch, with another shuffle.
    """

    def __init__(
        self, numbers: Sequence[int], needs: Sequence[Bucket], buckets: Sequence[Bucket], batch_size: int, seed: int
    ):
        """Plans over the clips of these numbers, whose sizes are `needs` (clip i of the index needs `needs[i]`).

        Raises:
          ValueError: fewer clips than one batch holds.
        """
        if len(numbers) < batch_size:
            raise ValueError(f"{len(numbers)} clips are fewer than one batch of {batch_size}")
        self._numbers = np.asarray(numbers)
        self._bucket = np.array([assign_bucket(needs[number], buckets) for number in numbers])
        self._buckets, self._batch_size, self._seed = tuple(buckets), batch_size, seed
        self.batches_per_epoch = len(numbers) // batch_size
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __getstate__(self):  # the cached bound method cannot travel to reader processes
        return {key: value for key, value in self.__dict__.items() if key != "_epoch"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def batch(self, step: int) -> tuple[np.ndarray, Bucket]:
        """Rows of the batch at `step`, int [batch_size], and its static shape."""
        epoch, index = divmod(step, self.batches_per_epoch)
        numbers, bucket = self._epoch(epoch)[index]
        return numbers, self._buckets[bucket]

    def _plan_epoch(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._numbers))
        batches, waiting = [], np.array([], int)
        for bucket in range(len(self._buckets)):
            waiting = np.concatenate([waiting, order[self._bucket[order] == bucket]])
            full = len(waiting) // self._batch_size * self._batch_size
            batches += [(self._numbers[part], bucket) for part in waiting[:full].reshape(-1, self._batch_size)]
            waiting = waiting[full:]
        return [batches[i] for i in rng.permutation(len(batches))]


def assign_bucket(need: Bucket, buckets: Sequence[Bucket]) -> int:
    """Index of the smallest bucket that holds `need`.

    Raises:
      ValueError: none does.
    """
    for i, bucket in enumerate(buckets):
        if fits(need, bucket):
            return i
    sizes = {field.name: (getattr(need, field.name), getattr(buckets[-1], field.name)) for field in fields(Bucket)}
    over = [f"{name} = {size}, where it holds {held}" for name, (size, held) in sizes.items() if size > held]
    raise ValueError(f"does not fit the largest of data.buckets: needs {'; '.join(over) or need}")


def evaluation_batches(
    numbers: Sequence[int], needs: Sequence[Bucket], buckets: Sequence[Bucket], batch_size: int
) -> list[tuple[np.ndarray, Bucket]]:
    """Every clip exactly once, as (numbers, bucket); a bucket's last batch may have fewer than `batch_size`."""
    assigned = [assign_bucket(needs[number], buckets) for number in numbers]
    batches = []
    for bucket in sorted(set(assigned)):
        members = np.array([number for number, b in zip(numbers, assigned) if b == bucket])
        batches += [(members[i : i + batch_size], buckets[bucket]) for i in range(0, len(members), batch_size)]
    return batches


def take(numbers: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a batch at `places`, and which of them count: places behind the last row repeat the first one."""
    counted = places < len(numbers)
    return numbers[np.where(counted, places, 0)], counted
