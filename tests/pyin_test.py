"""The second tracker hears what was sung, and how far a perturbation shifted it."""

import numpy as np
import pytest

from svc_jax import measures, pyin
from svc_jax.errors import UserError


def voice(semitones: float, sample_rate: int = 16_000, seconds: float = 1.0):
    """A voice with vibrato around 220 Hz and a pause in its middle, float32 [N]."""
    at = np.arange(round(seconds * sample_rate)) / sample_rate
    f0_hz = 220 * 2 ** ((semitones + 0.3 * np.sin(2 * np.pi * 5 * at)) / 12)
    turns = np.cumsum(f0_hz / sample_rate)
    audio = sum(0.1 / k * np.sin(2 * np.pi * k * turns) for k in range(1, 9))
    return np.where(abs(at / seconds - 0.5) < 0.15, 0, audio).astype(np.float32)


def test_a_semitone_is_heard_as_100_cents():
    wanted, found = (pyin.track(voice(semitones), 16_000) for semitones in (0, 1))
    assert len(wanted) == 101
    assert np.median(wanted[wanted > 0]) == pytest.approx(220, rel=0.01)
    assert not wanted[40:60].any()
    errors = measures.f0_measures(found, wanted)
    assert errors["f0_cents"] == pytest.approx(100, abs=2)
    assert errors["f0_rmse_cents"] == pytest.approx(100, abs=2)
    assert (errors["vde"], errors["gpe"]) == (0, 0)


def test_other_rates_are_heard_at_the_same_times():
    at_16k, at_44k = (pyin.track(voice(0, rate), rate) for rate in (16_000, 44_100))
    errors = measures.f0_measures(at_44k, at_16k)
    assert errors["vde"] < 0.03
    assert errors["f0_cents"] < 11  # a step of its grid


def test_a_missing_librosa_is_said_with_the_remedy(monkeypatch):
    pyin.require()
    monkeypatch.setattr(pyin.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'svc_jax\[eval\]', or say"):
        pyin.require()
