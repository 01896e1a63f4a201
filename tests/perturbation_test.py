"""Speech as of another speaker: warped spectra, stretched time, masks."""

import jax
import numpy as np
import pytest

from svc_jax import asr_steps, dsp, perturbation

SECOND = 16_000


def tone(hz: float, num_samples: int = SECOND) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(num_samples) / SECOND).astype("f")


def loudest_mel(audio, warp: float) -> int:
    filters = perturbation.warp_filters(dsp.mel_filters(), np.asarray([warp], "f"))
    spectrum = dsp.log_mel(audio[None], filters=filters)
    return int(np.asarray(spectrum)[0].mean(axis=0).argmax())


@pytest.mark.parametrize("warp", [0.85, 1.15])
@pytest.mark.parametrize("hz", [700.0, 1500.0, 3000.0])
def test_a_warp_moves_a_formant_by_its_factor(warp, hz):
    assert abs(loudest_mel(tone(hz), warp) - loudest_mel(tone(warp * hz), 1.0)) <= 1
    assert loudest_mel(tone(hz), warp) != loudest_mel(tone(hz), 1.0)


def test_a_warp_of_one_changes_nothing_and_no_warp_leaves_the_band():
    warps = np.asarray([1.0, 0.8, 1.25], np.float32)
    filters = np.asarray(perturbation.warp_filters(dsp.mel_filters(), warps))
    np.testing.assert_allclose(filters[0], dsp.mel_filters(), atol=1e-6)
    # The last filter still ends at the end of the band.
    for warped in filters:
        assert warped[-1].max() < 1e-6
        assert warped[-4:, -1].max() > 0
        assert (warped >= 0).all()


def test_stretched_time_reads_between_frames():
    frames = np.outer([1.0, 10.0], np.arange(50)).astype(np.float32)[..., None]
    stretched, count = perturbation.stretch_time(
        frames, np.asarray([41, 31]), np.asarray([1.25, 0.75], np.float32)
    )
    np.testing.assert_array_equal(count, [1 + 40 / 1.25, 1 + 30 / 0.75])
    np.testing.assert_allclose(
        stretched[0, :33, 0], 1.25 * np.arange(33), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        stretched[1, :41, 0], 7.5 * np.arange(41), rtol=1e-5, atol=1e-4
    )


def test_a_factor_of_one_leaves_the_front_end_as_it_is():
    batch = {
        "audio": np.stack([tone(400), np.r_[tone(900, 9000), np.zeros(7000, "f")]]),
        "num_samples": np.asarray([SECOND, 9000]),
    }
    ones = np.ones(2, np.float32)
    plain, count = asr_steps.batch_mfcc(batch)
    same, same_count = asr_steps.batch_mfcc({**batch, "warp": ones, "speed": ones})
    np.testing.assert_array_equal(count, same_count)
    np.testing.assert_allclose(same[0], plain[0], atol=2e-3)
    np.testing.assert_allclose(same[1, : count[1]], plain[1, : count[1]], atol=2e-3)


def test_time_masks_zero_spans_of_frames_for_all_coefficients():
    masked = np.asarray(
        perturbation.mask_time(jax.random.key(0), np.ones((64, 200, 3)), 2, 20)
    )
    assert (masked.min(-1) == masked.max(-1)).all()
    zeros = 200 - masked[..., 0].sum(axis=1)
    assert zeros.max() <= 40
    assert 10 < zeros.mean() < 30  # two spans of 10 on average, some overlap
