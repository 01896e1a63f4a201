"""How near a conversion came: measures of f0 and of spectra, on the host."""

import numpy as np

FFT_SIZES = (2048, 1024, 512, 256, 128, 64)


def f0_measures(found_hz, wanted_hz) -> dict[str, float]:
    """Voicing decision error, f0 frame error and f0 error (method.md, section 6).

    Args:
      found_hz: [T], 0 where unvoiced.
      wanted_hz: [T], the f0 that was asked for, 0 where unvoiced.

    Returns:
      dict of
        vde: share of frames whose voicing differs;
        ffe: share of frames whose voicing differs or whose f0 is off by over 20 %;
        f0_cents: median absolute error where both are voiced; NaN if nowhere.
    """
    found_hz, wanted_hz = (np.asarray(x, np.float64) for x in (found_hz, wanted_hz))
    differs = (found_hz > 0) != (wanted_hz > 0)
    both = (found_hz > 0) & (wanted_hz > 0)
    ratio = np.where(both, found_hz, 1.0) / np.where(both, wanted_hz, 1.0)
    off = both & (np.abs(ratio - 1) > 0.2)
    cents = np.abs(1200 * np.log2(ratio[both]))
    return {
        "vde": float(differs.mean()),
        "ffe": float((differs | off).mean()),
        "f0_cents": float(np.median(cents)) if cents.size else float("nan"),
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
