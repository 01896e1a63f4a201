"""Which parts of recordings become records."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import segments

RATE = 50.0  # frames per second


def spans(level_db, shortest: int = 50, longest: int = 500):
    return segments.spans(
        np.asarray(level_db, float),
        frame_rate=RATE,
        shortest=shortest,
        longest=longest,
    )


def levels(*parts: tuple[float, float]) -> np.ndarray:
    """[A] of (seconds, dB)."""
    return np.concatenate([np.full(round(s * RATE), db) for s, db in parts])


def test_silence_at_both_ends_is_trimmed_but_for_a_margin():
    found = spans(levels((2, -90), (4, -20), (3, -90)))
    margin = round(segments.MARGIN_SECONDS * RATE)
    assert found == [(100 - margin, 300 + margin)]


def test_long_pauses_are_left_out_and_short_ones_kept():
    level_db = levels((3, -20), (0.9, -90), (3, -20), (4, -90), (2, -25))
    assert spans(level_db) == [(0, 345 + 12), (545 - 12, 645)]


def test_what_is_40_db_below_the_loud_is_silence_and_no_more():
    loud = segments.SILENT_BELOW_LOUD_DB
    assert len(spans(levels((3, -20), (3, -20 - loud - 1), (3, -20)))) == 2
    assert spans(levels((3, -20), (3, -20 - loud + 1), (3, -20))) == [(0, 450)]


def test_without_sound_there_is_no_record():
    assert spans(levels((3, -100))) == []


def test_a_short_sound_gets_its_surroundings():
    ((first, last),) = spans(levels((4, -90), (0.1, -20), (4, -90)))
    assert last - first == 50
    assert first < 200
    assert last > 205
    assert spans(levels((0.1, -20), (4, -90))) == [(0, 50)]
    assert spans(levels((4, -90), (0.1, -20))) == [(155, 205)]


def test_two_short_sounds_that_would_overlap_are_one_record():
    level_db = levels((4, -90), (0.1, -20), (1.2, -90), (0.1, -20), (4, -90))
    ((first, last),) = spans(level_db, shortest=100)
    assert last - first >= 100
    assert first < 200
    assert last > 270


def test_a_recording_that_is_too_short_is_one_record():
    assert spans(levels((0.4, -20))) == [(0, 20)]


def test_songs_are_cut_in_their_quiet_moments():
    level_db = np.concatenate([levels((6.4, -20), (0.12, -45), (7, -20))])
    ((_, border), (other, _)) = spans(level_db)
    assert border == other
    assert 320 <= border < 326


levels_db = st.lists(
    st.tuples(st.floats(0.02, 30), st.sampled_from([-100.0, -72, -62, -45, -20])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(levels_db, st.sampled_from([10, 50, 200]))
def test_records_are_in_order_and_of_allowed_lengths_and_keep_what_sounds(
    parts, shortest
):
    level_db = levels(*parts)
    if not level_db.size:
        return
    found = spans(level_db, shortest=shortest)
    kept = np.zeros(level_db.size, bool)
    for first, last in found:
        assert min(shortest, level_db.size) <= last - first <= 500
        assert not kept[first:last].any()
        kept[first:last] = True
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    assert kept[segments.sounding(level_db)].all()


@pytest.mark.parametrize("seconds", [10, 10.02, 19.9, 20, 20.02, 61.3, 599.98])
def test_parts_of_a_long_song_are_about_even(seconds):
    rng = np.random.default_rng(0)
    found = spans(rng.normal(-25, 3, round(seconds * RATE)))
    lengths = [last - first for first, last in found]
    assert sum(lengths) == round(seconds * RATE)
    assert max(lengths) <= 500
    assert len(found) == 1 or min(lengths) >= 250 * 0.74
