"""The cache of features: what was finished is found, what was not is not."""

import hashlib
import pathlib

import numpy as np
import pytest

from data_pipeline.feature_cache import (
    FeatureCache,
    digest,
    file_digest,
    replacing,
)


@pytest.fixture
def entry(tmp_path):
    return FeatureCache(tmp_path).entry("abcdef")


def test_arrays_written_in_parts_are_read_by_numpy_and_in_rows(entry, tmp_path):
    whole = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float16)
    entry.write("features", whole.shape, np.float16, [whole[:5], whole[5:5], whole[5:]])
    (path,) = tmp_path.rglob("*.npy")
    np.testing.assert_array_equal(np.load(path), whole)
    np.testing.assert_array_equal(entry.read("features"), whole)
    np.testing.assert_array_equal(entry.read("features", 4, 9), whole[4:9])
    np.testing.assert_array_equal(entry.read("features", 16), whole[16:])


def test_parts_are_converted(entry):
    entry.write("f0", [3], np.float32, [np.arange(3.0)])
    assert entry.read("f0").dtype == np.float32


def test_an_array_of_another_length_than_announced_is_refused(entry, tmp_path):
    with pytest.raises(ValueError, match="f0 has 2 rows instead of 3"):
        entry.write("f0", [3], np.float32, [np.zeros(2)])
    assert not list(tmp_path.rglob("f0.npy"))


def test_an_entry_is_there_once_it_is_finished(entry):
    assert entry.summary() is None
    entry.write("f0", [1], np.float32, [np.zeros(1)])
    assert entry.summary() is None
    entry.finish({"seconds": 1.5, "spans": [[0, 3]]})
    assert entry.summary() == {"seconds": 1.5, "spans": [[0, 3]]}


def test_what_fails_leaves_no_file(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError, match="full"), replacing(path) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_digests_are_of_what_is_said_and_not_of_its_order(tmp_path):
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    found = [digest("a", "b"), digest("ab"), digest(["a", "b"]), digest("b", "a")]
    assert len(set(found)) == 4
    path = pathlib.Path(tmp_path, "data")
    path.write_bytes(b"x" * 3_000_000)
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
