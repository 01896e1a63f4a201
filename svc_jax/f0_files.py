"""Pitch as a table that can be edited: CSV of seconds,f0_hz, 0 where unvoiced."""

import csv
import io
import math
import pathlib

import numpy as np

from svc_jax import weight_files
from svc_jax.errors import UserError

HEADER = ("seconds", "f0_hz")


def write(path, f0_hz, frame_rate: float):
    """Writes f0, [T] in Hz, a line for each frame; `read` gives back the same bits."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(HEADER)
    for frame, hz in enumerate(np.asarray(f0_hz, np.float32)):
        rows.writerow((repr(frame / frame_rate), str(hz)))
    weight_files.write_bytes(pathlib.Path(path), table.getvalue().encode())


def read(path, num_frames: int, frame_rate: float, highest_hz: float) -> np.ndarray:
    """Reads f0 at any times, and puts it on a grid of frames.

    Linear between two voiced lines; at an edge each frame takes the nearer line; beyond
    the table's ends, the line there.

    Args:
      path: of the table; a first line of names may stand in it.
      num_frames: T.
      frame_rate: in Hz.
      highest_hz: that is taken.

    Returns:
      float32 [T] in Hz, 0 where unvoiced.

    Raises:
      UserError: if it is no such table.
    """
    seconds, f0_hz = _table(path, highest_hz)
    at = np.arange(num_frames) / frame_rate
    right = np.searchsorted(seconds, at, side="right").clip(1, max(len(seconds) - 1, 1))
    left, right = right - 1, np.minimum(right, len(seconds) - 1)
    span = np.maximum(seconds[right] - seconds[left], 1e-12)
    share = ((at - seconds[left]) / span).clip(0, 1)
    low, high = f0_hz[left], f0_hz[right]
    nearer = np.where(share < 0.5, low, high)
    between = low + (high - low) * share
    return np.where((low > 0) & (high > 0), between, nearer).astype(np.float32)


def _table(path, highest_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, f0_hz), float64 [n]; times rise."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        lines = list(csv.reader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: not readable as a table ({said}).") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and tuple(map(str.strip, line)) == HEADER):
            continue
        try:
            time, hz = map(float, line)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: {','.join(line)!r} is not seconds,f0_hz."
            ) from None
        if not (math.isfinite(time) and 0 <= hz <= highest_hz):
            raise UserError(
                f"{path}, line {number}: {','.join(line)!r}; give 0 for unvoiced, or up"
                f" to {highest_hz:g} Hz."
            )
        if rows and time <= rows[-1][0]:
            raise UserError(
                f"{path}, line {number}: {time:g} s does not come after"
                f" {rows[-1][0]:g} s; sort the lines."
            )
        rows.append((time, hz))
    if not rows:
        raise UserError(f"{path}: holds no line of seconds,f0_hz.")
    seconds, f0_hz = np.asarray(rows, np.float64).T
    return seconds, f0_hz
