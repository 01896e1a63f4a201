"""Which parts of a recording become records: silences are left out, songs are cut in
their quietest moments."""

import itertools

import numpy as np

SILENT_BELOW_LOUD_DB = 40.0
SILENT_DB = -70.0  # below full scale; silence however quiet the rest is
MARGIN_SECONDS = 0.25  # kept around what sounds: attacks, breath, the room's answer
MAX_PAUSE_SECONDS = 1.0  # a longer silence is left out


def loud_db(level_db: np.ndarray) -> float:
    """The level that a recording reaches for 5 % of its time; [A] in dB."""
    return float(np.percentile(level_db, 95))


def sounding(level_db: np.ndarray) -> np.ndarray:
    """Where a recording is not silent: [A] in dB below full scale -> [A] bool."""
    return level_db >= max(loud_db(level_db) - SILENT_BELOW_LOUD_DB, SILENT_DB)


def spans(
    level_db: np.ndarray, *, frame_rate: float, shortest: int, longest: int
) -> list[tuple[int, int]]:
    """Cuts a recording into records.

    Args:
      level_db: [A] level of each frame, in dB below full scale.
      frame_rate: frames per second.
      shortest: least frames of a record, unless the recording has fewer.
      longest: most frames of a record, at least twice `shortest`.

    Returns:
      (first, last) frames of each record, in order, without overlap; none if nothing
      sounds.
    """
    total = len(level_db)
    margin = round(MARGIN_SECONDS * frame_rate)
    pause = round(MAX_PAUSE_SECONDS * frame_rate)
    edges = np.flatnonzero(np.diff(sounding(level_db), prepend=False, append=False))
    runs = [
        (max(0, int(first) - margin), min(total, int(last) + margin))
        for first, last in edges.reshape(-1, 2)
    ]
    # The margins of a longest pause leave this much between them.
    runs = _joined(runs, pause - 2 * margin)
    while any(last - first < min(shortest, total) for first, last in runs):
        runs = _joined([_widened(run, shortest, total) for run in runs], 0)
    found = []
    for first, last in runs:
        borders = _cuts(level_db[first:last], longest)
        found += [(first + a, first + b) for a, b in itertools.pairwise(borders)]
    return found


def _joined(runs, gap: int) -> list[tuple[int, int]]:
    """Runs that are at most `gap` frames apart, as one."""
    joined = []
    for first, last in runs:
        if joined and first - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _widened(run, shortest: int, total: int) -> tuple[int, int]:
    first, last = run
    lacking = max(0, shortest - (last - first))
    first = max(0, min(first - lacking // 2, total - shortest))
    return first, min(total, max(last, first + shortest))


def _cuts(level_db: np.ndarray, longest: int) -> list[int]:
    """Borders of about even parts of [A] frames, each where it is quiet around."""
    borders, total = [0], len(level_db)
    smooth = np.convolve(level_db, np.ones(5) / 5, "same")
    parts = -(-total // longest)
    while parts > 1:
        rest = total - borders[-1]
        even = rest / parts
        least = max(even * 0.75, rest - (parts - 1) * longest)
        most = min(even * 1.25, longest)
        low = borders[-1] + int(np.ceil(least))
        high = max(low, borders[-1] + int(most))
        borders.append(low + int(np.argmin(smooth[low : high + 1])))
        parts -= 1
    return [*borders, total]
