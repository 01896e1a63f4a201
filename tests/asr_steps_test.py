"""The recogniser's update against float64 NumPy."""

import jax
import numpy as np
import pytest
import scipy.special

from svc_jax import asr_steps, optimizers
from svc_jax.models.wav2letter import Wav2Letter


def test_the_prior_of_labels_is_the_mean_of_their_probabilities():
    logits = 2 * np.random.default_rng(0).standard_normal((2, 6, 4), np.float32)
    real = np.concatenate([logits[0], logits[1, :2]])
    expected = scipy.special.softmax(real.astype(np.float64), axis=-1).mean(axis=0)
    found = asr_steps.label_prior(logits, np.array([6, 2]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_scores_are_divided_by_a_power_of_the_prior(scale):
    wav2letter = Wav2Letter(4, 6, 3, kernels=(8, 3), wide_kernel=2)
    optimizer = optimizers.clipped_adamw(1.0, 0.98, 0.01)
    normed = wav2letter.clone(normed=True)
    state = asr_steps.initial_state(normed, optimizer, jax.random.key(0))
    prior = np.float32([0.1, 0.2, 0.7])
    state = state.replace(prior=prior)
    x = np.random.default_rng(1).standard_normal((1, 40, 39), np.float32)
    of_params = jax.jit(wav2letter.apply)
    plain = of_params({"params": asr_steps.plain_params(state)}, x)["logits"]
    found = of_params({"params": asr_steps.plain_params(state, scale)}, x)["logits"]
    expected = plain - scale * np.log(prior)[None, None]
    np.testing.assert_allclose(found, expected, atol=5e-3)  # no label is too rare
