"""pYIN, by librosa: a second opinion on f0, of a tracker that conditions no generator."""

import importlib.util

import numpy as np

from svc_jax.errors import UserError
from svc_jax.geometry import HEARING_RATE

HOP_LENGTH = 160  # at 16 kHz, as CREPE's own
MIN_HZ, MAX_HZ = 50.0, 1000.0
_FRAME_LENGTH = 1024  # of which YIN compares halves: a period of MIN_HZ fits


def require():
    """Raises UserError unless librosa is installed."""
    if importlib.util.find_spec("librosa") is None:
        raise UserError(
            "pYIN needs librosa; pip install 'svc_jax[eval]', or say --nopyin."
        )


def track(audio, sample_rate: int) -> np.ndarray:
    """f0 of a recording (Mauch and Dixon 2014).

    Args:
      audio: float32 [N].
      sample_rate: in Hz.

    Returns:
      float64 [T] in Hz, 0 where unvoiced; a frame every 10 ms.
    """
    import librosa

    from svc_jax import audio_files

    if sample_rate != HEARING_RATE:
        audio = audio_files.resample(audio, sample_rate, HEARING_RATE)
    f0_hz, _, _ = librosa.pyin(
        np.asarray(audio, np.float32),
        fmin=MIN_HZ,
        fmax=MAX_HZ,
        sr=HEARING_RATE,
        frame_length=_FRAME_LENGTH,
        hop_length=HOP_LENGTH,
        fill_na=0.0,
    )
    return f0_hz
