"""How near a conversion came: measures of f0 and of spectra, on the host."""

import numpy as np

from data_pipeline import decoding

FFT_SIZES = (2048, 1024, 512, 256, 128, 64)
NUM_CEPSTRA = 24
CEPSTRUM_HOP = 256  # samples
_CEPSTRUM_FFT, _NUM_MELS = 1024, 80
_QUIETEST = 1e-10  # power of a mel band at least, where pauses are digital silence


def f0_measures(found_hz, wanted_hz) -> dict[str, float]:
    """Errors of voicing and of f0, frame by frame (method.md, section 6).

    Args:
      found_hz: [T], 0 where unvoiced.
      wanted_hz: [T], the f0 that was asked for, 0 where unvoiced.

    Returns:
      dict of
        vde: share of frames whose voicing differs;
        ffe: share of frames whose voicing differs or whose f0 is off by over 20 %;
      and over the frames that are voiced in both, NaN if there are none:
        gpe: gross pitch error, share of them whose f0 is off by over 20 %;
        f0_cents: median absolute error;
        f0_rmse_cents: root mean square error;
        f0_correlation: Pearson's, of the pitches in cents; NaN if one never moves.
    """
    found_hz, wanted_hz = (np.asarray(x, np.float64) for x in (found_hz, wanted_hz))
    differs = (found_hz > 0) != (wanted_hz > 0)
    both = (found_hz > 0) & (wanted_hz > 0)
    ratio = np.where(both, found_hz, 1.0) / np.where(both, wanted_hz, 1.0)
    off = both & (np.abs(ratio - 1) > 0.2)
    errors = {"vde": float(differs.mean()), "ffe": float((differs | off).mean())}
    if not both.any():
        unknown = ("gpe", "f0_cents", "f0_rmse_cents", "f0_correlation")
        return {**errors, **dict.fromkeys(unknown, float("nan"))}
    cents = 1200 * np.log2(ratio[both])
    return {
        **errors,
        "gpe": float(off[both].mean()),
        "f0_cents": float(np.median(np.abs(cents))),
        "f0_rmse_cents": float(np.sqrt(np.square(cents).mean())),
        "f0_correlation": correlation(
            np.log2(found_hz[both]), np.log2(wanted_hz[both])
        ),
    }


def spectral_distance(found, wanted) -> float:
    """Multi-resolution spectral distance, as L_recon measures it.

    Args:
      found: float32 [N].
      wanted: float32 [N].
    """
    import jax

    from svc_jax import losses

    distance = jax.jit(losses.spectral_loss, static_argnames="fft_sizes")
    return float(distance(found[None], wanted[None], fft_sizes=FFT_SIZES))


def mel_cepstra(audio, sample_rate: int) -> np.ndarray:
    """Cepstra c1 to c24 of the log mel spectrum, [T, 24], float64.

    The log magnitude of 80 Slaney mel bands is c0 + sum c_k cos; FFT 1024, hop 256.

    Args:
      audio: [N].
      sample_rate: in Hz.
    """
    from svc_jax import dsp

    power = np.square(np.abs(np.fft.rfft(_frames(audio) * dsp.hann(_CEPSTRUM_FFT))))
    mel = power @ dsp.mel_filterbank(sample_rate, _CEPSTRUM_FFT, _NUM_MELS)
    log_mel = np.log(np.maximum(mel, _QUIETEST))
    k, n = np.arange(1, NUM_CEPSTRA + 1), np.arange(_NUM_MELS)[:, None]
    return log_mel @ np.cos(np.pi * k * (2 * n + 1) / (2 * _NUM_MELS)) / _NUM_MELS


def frame_powers(audio) -> np.ndarray:
    """Mean squares of the frames that `mel_cepstra` hears: [N] -> [T], float64."""
    return np.square(_frames(audio)).mean(axis=1)


def _frames(audio) -> np.ndarray:
    """[N] -> [T, 1024], float64, CEPSTRUM_HOP apart."""
    audio = np.pad(np.asarray(audio, np.float64), _CEPSTRUM_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(audio, _CEPSTRUM_FFT)
    return frames[::CEPSTRUM_HOP]


def mel_cepstral_distortion(found, wanted, sample_rate: int) -> float:
    """Mean distance of mel cepstra in dB, frame by frame; level does not matter.

    10 / ln 10 sqrt(2 sum (c - c')^2) (Kubichek 1993): the root mean square over the
    mel bands of the difference in dB that 24 cosines can tell.

    Args:
      found: [N].
      wanted: [N], aligned with it.
      sample_rate: in Hz.
    """
    difference = mel_cepstra(found, sample_rate) - mel_cepstra(wanted, sample_rate)
    distance = np.sqrt(2 * np.sum(np.square(difference), axis=-1))
    return float(10 / np.log(10) * distance.mean())


def correlation(found, wanted) -> float:
    """Pearson's correlation of two contours [T]; NaN if one of them is constant."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    if not (np.ptp(found) and np.ptp(wanted)):
        return float("nan")
    found, wanted = found - found.mean(), wanted - wanted.mean()
    norm = np.linalg.norm(found) * np.linalg.norm(wanted)
    return float(found @ wanted / norm) if norm > 0 else float("nan")


def label_error(found, wanted) -> float:
    """Edit distance of two sequences of labels by the length of the wanted one.

    NaN where nothing is wanted; over 1 where far more is found.
    """
    if not len(wanted):
        return float("nan")
    return decoding.edit_distance(found, wanted) / len(wanted)
