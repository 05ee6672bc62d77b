"""The order of an epoch: all images, in batches of one size, from (seed, epoch) alone."""

import math

import numpy as np
import pytest
from conftest import TracedMemory

from data.sampler import EpochBatchSampler, transform_rng


def batches_of(num_samples, batch_size, seed, epoch, start_batch=0, imgsz=(64, 64), **options):
    batches = EpochBatchSampler(num_samples, batch_size, imgsz, seed, **options)
    batches.epoch, batches.start_batch = epoch, start_batch
    return list(batches)


@pytest.mark.parametrize(
    ("num_samples", "batch_size"), [(292, 16), (17, 16), (16, 16), (3, 16), (100, 7), (1, 1)]
)
def test_sampler_yields_every_image_in_batches_of_one_size(num_samples, batch_size):
    batches = batches_of(num_samples, batch_size, 0, 0)
    sampler = EpochBatchSampler(num_samples, batch_size, (64, 64), 0)
    assert len(batches) == len(sampler) == math.ceil(num_samples / batch_size)
    assert {len(batch) for batch in batches} == {sampler.batch_size}
    assert num_samples / len(batches) <= sampler.batch_size <= batch_size
    keys = [key for batch in batches for key in batch]
    assert [key.position for key in keys] == list(range(len(keys)))
    for tile in range(4):
        images = [key.indices[tile] for key in keys]
        assert sorted(images[:num_samples]) == list(range(num_samples))
        assert images[num_samples:] == images[: len(keys) - num_samples]
    assert len(keys) - num_samples < len(batches)


def test_sampler_order_is_a_function_of_seed_and_epoch():
    assert batches_of(50, 8, 1, 2) == batches_of(50, 8, 1, 2)
    assert batches_of(50, 8, 1, 2)[3:] == batches_of(50, 8, 1, 2, start_batch=3)
    orders = {
        tuple(key.indices[0] for batch in batches_of(50, 8, seed, epoch) for key in batch)
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world_size"), [(1, 1, 1), (3, 2, 1), (18, 4, 3), (101, 16, 2)]
)
def test_sampler_keys_are_windows_of_the_permutation(num_samples, batch_size, world_size):
    """The order is numpy's permutation, in a circle: an image's neighbors are the next ones."""
    order = np.random.default_rng((5, 2, 0)).permutation(num_samples)
    shards = [
        batches_of(num_samples, batch_size, 5, 2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    keys = [key for batch in zip(*shards, strict=True) for shard in batch for key in shard]
    assert [key.position for key in keys] == list(range(len(keys)))
    assert num_samples <= len(keys) < num_samples + len(shards[0])
    for key in keys:
        assert key.indices == tuple(order[(key.position + i) % num_samples] for i in range(4))
        assert {type(number) for number in (key.position, *key.indices)} == {int}


def test_sampler_starts_an_epoch_of_a_million_images_without_lists_of_them():
    """The order itself is 8 bytes for each image; a list of numbers would be five times that."""
    num_samples = 1_000_000
    sampler = EpochBatchSampler(num_samples, 64, (64, 64), 0)
    with TracedMemory() as memory:
        next(iter(sampler))
        sampler.source_images(3, 4)
    assert memory.peak < 20 * num_samples


def test_sampler_draws_one_image_size_for_each_batch():
    batches = batches_of(400, 2, 1, 2, imgsz=(64, 160))
    batch_sizes = [{key.imgsz for key in batch} for batch in batches]
    assert {len(sizes) for sizes in batch_sizes} == {1}
    sizes = [sizes.pop() for sizes in batch_sizes]
    assert set(sizes) == {64, 96, 128, 160} and min(map(sizes.count, set(sizes))) > 25
    assert batches_of(400, 2, 1, 2, start_batch=7, imgsz=(64, 160)) == batches[7:]
    single_size = [[key._replace(imgsz=64) for key in batch] for batch in batches]
    assert single_size == batches_of(400, 2, 1, 2)
    assert sizes != [batch[0].imgsz for batch in batches_of(400, 2, 1, 3, imgsz=(64, 160))]
    other_stride = batches_of(400, 2, 1, 2, imgsz=(64, 96), stride=8)
    assert {batch[0].imgsz for batch in other_stride} == {64, 72, 80, 88, 96}


def test_sampler_source_images_of_all_processes():
    whole = batches_of(50, 8, 1, 2)
    sampler = EpochBatchSampler(50, 8, (64, 64), 1, rank=1, world_size=2)
    sampler.epoch, sampler.start_batch = 2, 1
    expected = {index for batch in whole[3:5] for key in batch for index in key.indices}
    assert sampler.source_images(3, 4) == sorted(expected)
    assert (sampler.epoch, sampler.start_batch) == (2, 1)


def test_transform_rng_differs_for_every_sample_and_transform():
    values = {
        float(transform_rng(seed, epoch, position, name).random())
        for seed in range(3)
        for epoch in range(3)
        for position in range(20)
        for name in ("mosaic", "fliplr")
    }
    assert len(values) == 360


def test_transform_rng_does_not_change_between_versions():
    """The numbers of a run must be those of its resumed part, on any machine."""
    assert transform_rng(0, 1, 2, "mosaic").random() == 0.971257671766238
    assert transform_rng(0, 1, 2, "mosaic").integers(1000, size=4).tolist() == [225, 971, 917, 458]


def test_transform_rng_is_uniform():
    """First numbers of neighboring streams are as independent as those of one stream."""
    first = np.array([transform_rng(0, 0, position, "x").random() for position in range(4000)])
    counts = np.histogram(first, 20, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.052  # 3.3 standard deviations
