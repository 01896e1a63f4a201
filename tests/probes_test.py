"""Linear probes tell what is there, and nothing where nothing is."""

import numpy as np
import pytest

from svc_jax import probes


def clouds(num_classes: int, each: int, distance: float):
    rng = np.random.default_rng(0)
    centres = distance * rng.normal(size=(num_classes, 6))
    labels = np.tile(np.arange(num_classes), each)
    return centres[labels] + rng.normal(size=(len(labels), 6)), labels


def test_classes_that_lie_apart_are_told_apart():
    x, y = clouds(4, 60, 20.0)
    probe = probes.linear(x[:120], y[:120], x[120:], y[120:])
    assert probe.accuracy == 1.0
    assert probe.chance == pytest.approx(0.25)


def test_noise_tells_nothing():
    x, y = clouds(4, 400, 0.0)
    probe = probes.linear(x[:800], y[:800], x[800:], y[800:])
    assert abs(probe.accuracy - probe.chance) < 0.06


def test_gaussian_classes_are_told_apart_as_well_as_can_be():
    # Two unit normals 2 apart: the best any classifier gets is Phi(1).
    rng = np.random.default_rng(1)
    y = np.arange(8000) % 2
    x = rng.normal(size=(8000, 1)) + 2.0 * y[:, None]
    probe = probes.linear(x[:4000], y[:4000], x[4000:], y[4000:])
    assert probe.accuracy == pytest.approx(0.8413, abs=0.015)


def test_a_singer_is_known_by_the_mean_of_other_clips():
    x, y = clouds(5, 8, 10.0)
    names = [f"singer {number}" for number in y]
    x, names = [*x, np.zeros(6)], [*names, "once"]
    assert probes.singers(x, names).accuracy == 1.0


def test_phones_are_tested_on_clips_that_were_not_fitted():
    x, y = clouds(3, 40, 20.0)
    clips, labels = list(x.reshape(30, 4, 6)), list(y.reshape(30, 4))
    fitted = [n % 2 == 0 for n in range(30)]
    assert probes.phones(clips, labels, fitted).accuracy == 1.0
    # Wrong labels in the tested half show that it is that half which is tested.
    labels = [y if f else (y + 1) % 3 for y, f in zip(labels, fitted, strict=True)]
    assert probes.phones(clips, labels, fitted).accuracy == 0.0


def test_frames_belong_to_the_nearest_peak_within_reach():
    labels = probes.label_frames([3, 6], [7, 9], 14, reach=2)
    wanted = [-1, 7, 7, 7, 7, 9, 9, 9, 9, -1, -1, -1, -1, -1]
    np.testing.assert_array_equal(labels, wanted)
