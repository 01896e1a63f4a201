"""How records are dealt to files."""

import pytest

from data_pipeline import shards
from svc_jax.geometry import FrameGeometry


def references(*lengths: int) -> list[shards.Reference]:
    return [shards.Reference("k", f"{n}", 0, (7, 7 + f)) for n, f in enumerate(lengths)]


def sizes(geometry, lengths, **options) -> list[list[int]]:
    planned = shards.plan(references(*lengths), "train", 3, geometry, 12, **options)
    planned = list(planned)
    assert [shard.number for shard in planned] == list(range(3, 3 + len(planned)))
    assert {shard.split for shard in planned} <= {"train"}
    joined = [reference for shard in planned for reference in shard.references]
    assert joined == references(*lengths)
    return [[r.span[1] - r.span[0] for r in shard.references] for shard in planned]


def test_files_are_of_about_the_size_that_is_asked_for():
    # An ASR frame: 320 samples, 5 frames of three features, and 12 values of 2 bytes.
    frame = 4 * (320 + 3 * 5) + 2 * 12
    lengths = [100] * 50 + [500] * 10
    found = sizes(FrameGeometry(), lengths, shard_bytes=1000 * frame)
    totals = [sum(shard) for shard in found]
    assert max(totals) <= 1000 + 500
    assert min(totals[:-1]) >= 500
    assert len(found) == pytest.approx(sum(lengths) / 1000, abs=1)


def test_a_small_dataset_is_one_file_and_none_is_none():
    assert sizes(FrameGeometry(), [100, 200]) == [[100, 200]]
    assert sizes(FrameGeometry(), []) == []


def test_200_mb_are_ten_minutes_of_the_published_network():
    planned = shards.plan(
        references(*[500] * 200), "train", 0, FrameGeometry(), asr_size=2000
    )
    minutes = len(next(planned).references) / 6
    assert 12 < minutes < 14
