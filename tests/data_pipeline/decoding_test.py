"""Labels from scores, against what enumeration of all paths says."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import decoding

SEQUENCES = st.lists(st.integers(0, 3), max_size=6)
NUM_LABELS, NUM_FRAMES = 3, 5  # the last label is the blank


@functools.cache
def distance(a, b) -> int:
    """Levenshtein's recursion as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance(a[1:], b) + 1,
        distance(a, b[1:]) + 1,
        distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


def collapse(path) -> tuple[int, ...]:
    return tuple(
        label for label, _ in itertools.groupby(path) if label != NUM_LABELS - 1
    )


def all_paths(logits):
    """Every path with its log probability."""
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for path in itertools.product(range(NUM_LABELS), repeat=len(logits)):
        yield path, sum(scores[frame, label] for frame, label in enumerate(path))


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, SEQUENCES)
def test_edit_distance_is_levenshteins(found, wanted):
    assert decoding.edit_distance(found, wanted) == distance(
        tuple(found), tuple(wanted)
    )


def test_an_error_rate_is_over_all_that_was_wanted():
    rate = decoding.ErrorRate()
    assert float(rate) == 0.0
    rate.add("abc", "abd")
    rate.add("", "a")
    assert float(rate) == pytest.approx(2 / 4)


def test_words_are_what_lies_between_spaces():
    assert decoding.words(list("la  li ")) == ["la", "li"]


def test_greedy_drops_repeats_and_blanks_and_stops_at_the_end():
    path = [2, 0, 0, 2, 0, 1, 1, 2, 1]  # 2 is the blank
    logits = np.eye(3)[[path, path]]
    assert decoding.greedy(logits, np.asarray([9, 4])) == [[0, 0, 1, 1], [0]]


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_beam_finds_the_likeliest_labels_of_all_paths(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, NUM_FRAMES, NUM_LABELS)).astype(np.float32)
    counts = [NUM_FRAMES, 3]
    found = decoding.beam(logits, counts, 100)
    for row, count in enumerate(counts):
        likelihood = {}
        for path, score in all_paths(logits[row, :count].astype(np.float64)):
            labels = collapse(path)
            likelihood[labels] = likelihood.get(labels, 0.0) + np.exp(score)
        assert tuple(found[row]) == max(likelihood, key=likelihood.get)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 1), min_size=1, max_size=3),
)
def test_forced_alignment_is_the_best_of_all_paths(seed, labels):
    logits = np.random.default_rng(seed).normal(size=(6, NUM_LABELS))
    peaks = decoding.forced_alignment(logits, labels)
    fitting = {p: s for p, s in all_paths(logits) if collapse(p) == tuple(labels)}
    best = max(fitting, key=fitting.get)
    spans, frame = [], 0
    for label, run in itertools.groupby(best):
        length = len(list(run))
        if label != NUM_LABELS - 1:
            spans.append((label, range(frame, frame + length)))
        frame += length
    scores = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    wanted = [max(span, key=lambda t: scores[t, label]) for label, span in spans]
    np.testing.assert_array_equal(peaks, wanted)
