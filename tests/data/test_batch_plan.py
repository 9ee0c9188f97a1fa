"""The batch plan: complete, deterministic, bucketed."""

import pickle

import numpy as np
import pytest

from mecap_jax.config import Bucket
from mecap_jax.data.batch_plan import BatchPlan, assign_bucket, evaluation_batches, take
from mecap_jax.data.fitting import fits

BUCKETS = (Bucket(32, 2, 2, 1), Bucket(64, 4, 4, 1))
SMALL, LARGE = Bucket(20, 1, 2, 1), Bucket(20, 3, 2, 1)  # LARGE has too much audio for the first bucket


@pytest.fixture
def needs():
    rng = np.random.default_rng(0)
    return [SMALL if x < 0.6 else LARGE for x in rng.random(50)]


def test_an_epoch_visits_every_row_at_most_once(needs):
    plan = BatchPlan(range(3, 50), needs, BUCKETS, 8, seed=1)
    assert plan.batches_per_epoch == 47 // 8
    for epoch in range(3):
        rows = np.concatenate([plan.batch(epoch * 5 + i)[0] for i in range(5)])
        assert len(set(rows)) == 40 and set(rows) <= set(range(3, 50))


def test_over_epochs_no_row_is_forgotten(needs):
    plan = BatchPlan(range(50), needs, BUCKETS, 8, seed=1)
    seen = {row for step in range(60) for row in plan.batch(step)[0]}
    assert seen == set(range(50))


def test_every_row_fits_its_bucket_and_small_batches_stay_small(needs):
    plan = BatchPlan(range(50), needs, BUCKETS, 4, seed=1)
    buckets = []
    for step in range(24):
        rows, bucket = plan.batch(step)
        buckets.append(bucket)
        assert bucket == BUCKETS[1] or all(needs[row] == SMALL for row in rows)
    assert set(buckets) == set(BUCKETS)


def test_the_seed_decides_and_travels(needs):
    def batches(plan):
        return [plan.batch(step)[0].tolist() for step in range(30)]

    plan = BatchPlan(range(50), needs, BUCKETS, 8, seed=1)
    again, other = BatchPlan(range(50), needs, BUCKETS, 8, seed=1), BatchPlan(range(50), needs, BUCKETS, 8, seed=2)
    assert batches(plan) == batches(again) == batches(pickle.loads(pickle.dumps(plan)))
    assert batches(plan) != batches(other)
    assert batches(plan)[:6] != batches(plan)[6:12], "epochs are shuffled anew"


def test_evaluation_takes_every_row_once(needs):
    rows = list(range(7, 50))
    batches = evaluation_batches(rows, needs, BUCKETS, 8)
    assert sorted(row for chosen, _ in batches for row in chosen) == rows
    assert sum(len(chosen) < 8 for chosen, _ in batches) <= len(BUCKETS)
    assert all(fits(needs[row], bucket) for chosen, bucket in batches for row in chosen)


def test_places_behind_the_last_row_do_not_count():
    rows, counted = take(np.array([7, 8, 9]), np.array([2, 0, 3, 5]))
    assert rows.tolist() == [9, 7, 7, 7] and counted.tolist() == [True, True, False, False]


def test_too_few_rows_and_too_large_rows_are_refused(needs):
    with pytest.raises(ValueError, match="3 clips are fewer than one batch of 8"):
        BatchPlan(range(3), needs, BUCKETS, 8, seed=0)
    with pytest.raises(ValueError, match=r"data\.buckets: needs .*audio_chunks = 9, where it holds"):
        assign_bucket(Bucket(10, 9), BUCKETS)
