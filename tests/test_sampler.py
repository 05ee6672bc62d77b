"""The order of an epoch: everything once, in even batches, from (seed, epoch) alone."""

import pytest

from data.sampler import EpochBatchSampler, sample_rng


def epoch_of(samples, batch_size, seed, epoch, start=0, imgsz=(64, 64)):
    batches = EpochBatchSampler(samples, batch_size, imgsz, seed)
    batches.epoch, batches.start = epoch, start
    return list(batches)


@pytest.mark.parametrize(
    ("samples", "batch_size"), [(292, 16), (17, 16), (16, 16), (3, 16), (100, 7), (1, 1)]
)
def test_every_picture_once_in_even_batches(samples, batch_size):
    batches = epoch_of(samples, batch_size, 0, 0)
    assert (
        len(batches)
        == len(EpochBatchSampler(samples, batch_size, (64, 64), 0))
        == -(-samples // batch_size)
    )
    keys = [key for batch in batches for key in batch]
    for tile in range(4):
        assert sorted(indices[tile] for _, _, indices, _ in keys) == list(range(samples))
    assert [place for _, place, _, _ in keys] == list(range(samples))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_the_order_is_a_function_of_seed_and_epoch():
    assert epoch_of(50, 8, 1, 2) == epoch_of(50, 8, 1, 2)
    assert epoch_of(50, 8, 1, 2)[3:] == epoch_of(50, 8, 1, 2, start=3)
    orders = {
        tuple(k[2][0] for b in epoch_of(50, 8, seed, epoch) for k in b)
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_a_batch_has_one_side_out_of_the_range():
    batches = epoch_of(400, 2, 1, 2, imgsz=(64, 160))
    sides = [{side for *_, side in batch} for batch in batches]
    assert {len(side) for side in sides} == {1}
    sides = [side.pop() for side in sides]
    assert set(sides) == {64, 96, 128, 160} and min(map(sides.count, set(sides))) > 25
    assert epoch_of(400, 2, 1, 2, start=7, imgsz=(64, 160)) == batches[7:]
    assert [[key[:3] for key in batch] for batch in batches] == [
        [key[:3] for key in b] for b in epoch_of(400, 2, 1, 2)
    ]
    assert sides != [b[0][3] for b in epoch_of(400, 2, 1, 3, imgsz=(64, 160))]


def test_no_two_samples_share_their_random_numbers():
    drawn = {
        float(sample_rng(seed, epoch, place).random())
        for seed in range(3)
        for epoch in range(3)
        for place in range(20)
    }
    assert len(drawn) == 180
