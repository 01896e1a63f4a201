"""Loss terms against their formulas in float64 and against enumeration."""

import functools
import itertools

import jax
import numpy as np
import pytest
import scipy.signal
import scipy.special

from svc_jax import losses

FFT_SIZES = (2048, 1024, 512, 256, 128, 64)

spectral_loss = jax.jit(losses.spectral_loss, static_argnums=2)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def audio(level, seed=0):
    """Two examples of noise under a rising envelope, [2, 4000]."""
    return (
        level
        * np.geomspace(1e-3, 1, 4000, dtype=np.float32)
        * normal(2, 4000, seed=seed)
    )


def float64_spectral_loss(fake, real, fft_sizes):
    """method.md, section 3: L_recon of [B, N] audio."""

    def magnitude(row, n_fft):
        _, _, spectrum = scipy.signal.stft(
            np.pad(row.astype(np.float64), n_fft // 2, mode="reflect"),
            nperseg=n_fft,
            noverlap=n_fft - n_fft // 4,
            boundary=None,
            padded=False,
        )
        # SciPy divides by the sum of the Hann window, n_fft / 2.
        return np.sqrt(np.maximum(np.abs(spectrum * n_fft / 2) ** 2, 1e-7))

    terms = []
    for n_fft, pair in itertools.product(fft_sizes, zip(fake, real, strict=True)):
        fake_spectrum, real_spectrum = (magnitude(row, n_fft) for row in pair)
        difference = np.linalg.norm(real_spectrum - fake_spectrum)
        convergence = difference / np.linalg.norm(real_spectrum)
        log_ratio = np.log(real_spectrum / fake_spectrum)
        terms.append(convergence + np.abs(log_ratio).mean())
    return np.mean(terms)


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (audio(0.1), audio(0.1, seed=1)),
        (audio(0.1), audio(0.1) * 1.01),
        (audio(1.0), audio(1e-3, seed=1)),
        (0 * audio(1.0), audio(0.1)),
        (audio(0.1), 0 * audio(1.0)),
        (audio(0.1)[:, :300], audio(0.1, seed=1)[:, :300]),
        # The mean is over examples: a loud one must not hide a faint one.
        (audio(1.0) * [[1], [1e-2]], audio(1.0, seed=1) * [[1], [1e-2]]),
    ],
    ids=[
        *("other", "near", "faint", "silent fake", "silent real", "short", "unequal"),
    ],
)
def test_spectral_loss_is_that_in_float64(fake, real):
    fake, real = np.float32(fake), np.float32(real)
    expected = float64_spectral_loss(fake, real, FFT_SIZES)
    result = float(spectral_loss(fake, real, FFT_SIZES))
    assert result == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("level", [1.0, 1e-4, 0.0])
def test_spectral_loss_of_equals_is_exactly_zero(level):
    assert float(spectral_loss(audio(level), audio(level), FFT_SIZES)) == 0


spectral_slope = jax.jit(jax.grad(losses.spectral_loss), static_argnums=2)


@pytest.mark.parametrize("real", [0.0, 1.0])
@pytest.mark.parametrize("fake", [0.0, 1e-20, 1e-3, 1.0])
def test_spectral_loss_has_finite_gradients_on_silence_and_at_equality(fake, real):
    slope = spectral_slope(audio(fake), audio(real), FFT_SIZES)
    assert np.isfinite(slope).all()
    # Below the floor of the magnitude there is no slope.
    assert np.any(slope) == (fake >= 1e-3)


def test_spectral_loss_has_the_gradient_of_the_formula():
    fake, real = audio(0.1), audio(0.1, seed=1)
    slope = np.float64(spectral_slope(fake, real, FFT_SIZES))
    direction = np.float64(audio(1e-7, seed=2))
    before, after = (
        float64_spectral_loss(fake + sign * direction, real, FFT_SIZES)
        for sign in (-1, 1)
    )
    assert np.vdot(slope, direction) == pytest.approx((after - before) / 2, rel=1e-3)


@pytest.mark.parametrize("shape", [(3, 50, 1), (2, 7)])
def test_least_squares_losses_are_their_formulas(shape):
    real, fake = normal(*shape), normal(*shape, seed=1)
    inner = np.full(3, np.nan)  # a map that is no logits
    expected = np.mean((1 - np.float64(real)) ** 2) + np.mean(np.float64(fake) ** 2)
    found = losses.discriminator_loss([[inner, real]], [[inner, fake]])
    assert float(found) == pytest.approx(expected)
    expected = np.mean((1 - np.float64(fake)) ** 2)
    assert float(losses.adversarial_loss([[inner, fake]])) == pytest.approx(expected)


def test_every_judge_counts_alike_whatever_its_size():
    real = [[normal(2, 400, 1)], [normal(2, 3, 1, seed=1)]]
    fake = [[normal(2, 400, 1, seed=2)], [normal(2, 3, 1, seed=3)]]
    alone = [losses.discriminator_loss([r], [f]) for r, f in zip(real, fake)]
    both = losses.discriminator_loss(real, fake)
    assert float(both) == pytest.approx(float(sum(alone)) / 2)
    alone = [losses.adversarial_loss([f]) for f in fake]
    assert float(losses.adversarial_loss(fake)) == pytest.approx(float(sum(alone)) / 2)


def test_feature_matching_is_the_mean_relative_distance_of_inner_maps():
    maps = [[normal(2, n, 4, seed=n + k) for n in (9, 5, 3)] for k in range(4)]
    real, fake = [maps[0], maps[1]], [maps[2], maps[3]]
    ratios = [
        np.abs(np.float64(r) - f).mean() / np.abs(np.float64(r)).mean()
        for one, other in zip(real, fake)
        for r, f in zip(one[:-1], other[:-1])  # the last are the logits
    ]
    expected = np.mean(ratios)
    assert float(losses.feature_matching(real, fake)) == pytest.approx(expected, 1e-4)
    assert losses.feature_matching(real, real) == 0
    louder = jax.tree.map(lambda x: 1000 * x, (real, fake))
    assert float(losses.feature_matching(*louder)) == pytest.approx(expected, 1e-4)


def test_the_best_scores_cost_nothing():
    ones, zeros = np.ones((2, 9, 1)), np.zeros((2, 9, 1))
    ones, zeros = [[ones]], [[zeros]]
    assert losses.discriminator_loss(ones, zeros) == 0
    assert losses.discriminator_loss(zeros, ones) == 2
    assert losses.adversarial_loss(ones) == 0
    assert losses.adversarial_loss(zeros) == 1


def test_feature_distance_is_a_mean_in_units_of_the_scale():
    fake, real = normal(2, 5, 7), normal(2, 5, 7, seed=1)
    expected = np.abs(np.float64(fake) - real).mean() / 0.37
    assert float(losses.feature_distance(fake, real, 0.37)) == pytest.approx(expected)
    assert losses.feature_distance(real, real, 0.37) == 0


# CTC.


def enumerated_ctc(logits, labels, blank):
    """-log of the sum over all paths that read as the labels: [A, C], [L] -> float."""
    log_probs = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    num_frames, num_classes = logits.shape
    found = []
    for path in itertools.product(range(num_classes), repeat=num_frames):
        read = [label for label, _ in itertools.groupby(path) if label != blank]
        if read == list(labels):
            found.append(sum(log_probs[np.arange(num_frames), path]))
    return -scipy.special.logsumexp(found)


@pytest.mark.parametrize("blank", [0, 3])
def test_ctc_loss_sums_over_all_alignments_and_divides_by_the_labels(blank):
    first, second, third = (label for label in range(4) if label != blank)
    examples = [  # real frames, labels
        (5, [first, second]),
        (5, [first, first]),  # a blank must part them
        (3, [third]),
        (4, [second, first, second]),
        (5, []),
        (1, [third]),
    ]
    logits = 2 * normal(len(examples), 5, 4)
    labels = np.full((len(examples), 3), first, np.int32)  # garbage after the real ones
    for place, (_, real) in zip(labels, examples, strict=True):
        place[: len(real)] = real
    result = jax.jit(functools.partial(losses.ctc_loss, blank=blank))(
        logits,
        np.array([frames for frames, _ in examples]),
        labels,
        np.array([len(real) for _, real in examples]),
    )
    expected = [
        enumerated_ctc(row[:frames], real, blank) / max(1, len(real))
        for row, (frames, real) in zip(logits, examples, strict=True)
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-5)
