"""Label scores -> labels, and how far those are from what was said; on the host."""

import collections
import itertools
from collections.abc import Sequence

import numpy as np


def greedy(logits, num_frames) -> list[list[int]]:
    """The best label of every frame, repeats and blanks removed.

    Args:
      logits: [B, A, C], the last label the blank.
      num_frames: [B] real frames of the A.
    """
    blank = logits.shape[-1] - 1
    decoded = []
    for path, count in zip(logits.argmax(axis=-1), num_frames, strict=True):
        collapsed = [int(label) for label, _ in itertools.groupby(path[:count])]
        decoded.append([label for label in collapsed if label != blank])
    return decoded


def beam(logits, num_frames, width: int) -> list[list[int]]:
    """The likeliest labels, summed over the paths that lead to them (prefix beam search).

    Args:
      logits: [B, A, C], the last label the blank.
      num_frames: [B] real frames of the A.
      width: prefixes kept at each frame.
    """
    import tensorflow as tf

    by_time = np.ascontiguousarray(np.swapaxes(logits, 0, 1))
    (best,), _ = tf.nn.ctc_beam_search_decoder(
        by_time, np.asarray(num_frames, np.int32), beam_width=width
    )
    decoded = [[] for _ in range(logits.shape[0])]
    for (row, _), label in zip(best.indices.numpy(), best.values.numpy(), strict=True):
        decoded[row].append(int(label))
    return decoded


def edit_distance(found: Sequence, wanted: Sequence) -> int:
    """Insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b)),
            )
    return row[-1]


def words(letters: Sequence[str]) -> list[str]:
    """Words of letters with spaces between."""
    return "".join(letters).split()


class ErrorRate:
    """Edit distance over the number of what was wanted, summed over recordings."""

    def __init__(self):
        self._counts = collections.Counter()

    def add(self, found: Sequence, wanted: Sequence):
        """Counts what was found against what was wanted."""
        self._counts["errors"] += edit_distance(found, wanted)
        self._counts["wanted"] += len(wanted)

    def __float__(self):
        return self._counts["errors"] / max(1, self._counts["wanted"])


def forced_alignment(logits, labels: Sequence[int]) -> np.ndarray:
    """The frame at which each label is likeliest said, in order (Viterbi over CTC).

    Args:
      logits: [A, C] of the real frames, the last label the blank.
      labels: [L], of which A is at least L and one more between equal neighbours.

    Returns:
      int [L], rising: of the frames given to each label the one that scores it highest.
    """
    scores = np.asarray(logits, np.float64)
    scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    blank = scores.shape[1] - 1
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    emitted = scores[:, states]
    may_skip = np.zeros(len(states), bool)  # the blank between two unequal labels
    may_skip[3::2] = states[3::2] != states[1:-2:2]

    best = np.full(len(states), -np.inf)
    best[:2] = emitted[0, :2]
    came_from = np.zeros((len(scores), len(states)), int)
    for frame in range(1, len(scores)):
        steps = np.full((3, len(states)), -np.inf)
        steps[0] = best
        steps[1, 1:] = best[:-1]
        steps[2, 2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        came_from[frame] = steps.argmax(axis=0)
        best = steps.max(axis=0) + emitted[frame]
    state = len(states) - 1 - int(best[-2:].argmax() == 0)
    path = np.zeros(len(scores), int)
    for frame in reversed(range(len(scores))):
        path[frame] = state
        state -= came_from[frame, state]
    return np.asarray(
        [
            max(np.flatnonzero(path == 2 * n + 1), key=lambda t: scores[t, label])
            for n, label in enumerate(labels)
        ],
        int,
    )
