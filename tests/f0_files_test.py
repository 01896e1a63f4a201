"""Pitch in a table, and back onto a grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_jax import f0_files


@pytest.mark.parametrize("frame_rate", [250.0, 100.0, 44_100 / 441, 44_100 / 256])
def test_what_is_written_is_read_bit_for_bit(tmp_path, frame_rate):
    rng = np.random.default_rng(0)
    f0_hz = rng.uniform(32, 2000, 1000).astype(np.float32) * (rng.random(1000) < 0.7)
    f0_files.write(tmp_path / "f0.csv", f0_hz, frame_rate)
    found = f0_files.read(tmp_path / "f0.csv", 1000, frame_rate, 8000)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, f0_hz)
    assert [p.name for p in tmp_path.iterdir()] == ["f0.csv"]


def test_other_times_are_brought_onto_the_grid(tmp_path):
    (tmp_path / "f0.csv").write_text("0.1,100\n0.2,200\n\n0.3,0\n0.5,400\n")
    found = f0_files.read(tmp_path / "f0.csv", 13, 20.0, 8000)
    # Held before; linear; the nearer one at an edge; held after.
    expected = [100, 100, 100, 150, 200, 0, 0, 0, 400, 400, 400, 400, 400]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_line_is_a_monotone(tmp_path):
    (tmp_path / "f0.csv").write_text("0,220")
    found = f0_files.read(tmp_path / "f0.csv", 5, 100.0, 8000)
    np.testing.assert_array_equal(found, np.full(5, 220))


@given(st.lists(st.floats(0, 2000, width=32), min_size=1, max_size=30))
def test_no_pitch_comes_from_nowhere(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("tables") / "f0.csv"
    f0_files.write(path, values, 100.0)
    found = f0_files.read(path, 3 * len(values), 300.0, 8000)
    assert found.max() <= max(values)
    voiced = found[found > 0]
    assert not voiced.size or voiced.min() >= min(v for v in values if v)
