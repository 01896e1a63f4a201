"""What can be read from features by a linear map: who sings, and what is said."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear classifier on what it was not fitted to.

    Attributes:
      accuracy: share of examples it names rightly.
      chance: share that the most frequent class would get.
    """

    accuracy: float
    chance: float


@dataclasses.dataclass(frozen=True)
class Linear:
    """Logistic regression on standardised features.

    Attributes:
      mean, deviation: [D] of what it was fitted to.
      weights: [D, C].
      bias: [C].
    """

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def standardise(self, x):
        """[N, D] -> [N, D]."""
        return (x - self.mean) / self.deviation

    def scores(self, x):
        """Logits of the classes: [N, D] -> [N, C]."""
        return self.standardise(x) @ self.weights + self.bias


def linear(fit_x, fit_y, test_x, test_y, penalty: float = 1e-3) -> Probe:
    """Fits logistic regression to standardised features and tests it.

    Args:
      fit_x: [N, D].
      fit_y: [N] classes from 0.
      test_x: [M, D].
      test_y: [M], classes that are in fit_y.
      penalty: on the squared weights, against the mean cross entropy.
    """
    found = fit_linear(fit_x, fit_y, penalty).scores(test_x).argmax(axis=1)
    test_y = np.asarray(test_y)
    return Probe(
        float((found == test_y).mean()), float(np.bincount(test_y).max() / len(test_y))
    )


def fit_linear(fit_x, fit_y, penalty: float = 1e-3) -> Linear:
    """Fits logistic regression; arguments as of `linear`."""
    import jax
    import jax.numpy as jnp
    import optax

    mean, deviation = fit_x.mean(axis=0), np.maximum(fit_x.std(axis=0), 1e-6)
    fit_x = jnp.asarray((fit_x - mean) / deviation, jnp.float32)
    fit_y = jnp.asarray(fit_y)
    params = {
        "weights": jnp.zeros((fit_x.shape[1], int(fit_y.max()) + 1)),
        "bias": jnp.zeros(int(fit_y.max()) + 1),
    }

    def loss(params):
        logits = fit_x @ params["weights"] + params["bias"][None]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, fit_y)
        return jnp.mean(entropy) + penalty * jnp.sum(jnp.square(params["weights"]))

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, state = carry
        value, grads = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), value

    (params, _), _ = jax.jit(
        lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=100)
    )(params)
    return Linear(
        mean, deviation, np.asarray(params["weights"]), np.asarray(params["bias"])
    )


def singers(means, names) -> Probe:
    """Whether a clip's mean features tell who sings: every other clip of each is fitted.

    Args:
      means: list of [D], over the frames of each clip.
      names: of their singers; who has one clip only is left out.
    """
    means = np.stack(means)
    names = np.asarray(names)
    fit, test = [], []
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        if own.size > 1:
            fit += list(own[::2])
            test += list(own[1::2])
    classes = {name: number for number, name in enumerate(np.unique(names[fit]))}
    y = np.asarray([classes.get(name, -1) for name in names])
    return linear(means[fit], y[fit], means[test], y[test])


def phones(clips, labels, is_fitted) -> Probe:
    """Whether a frame's features tell which label is said in it.

    Args:
      clips: list of [N, D]: the frames of each clip that have a label.
      labels: list of [N].
      is_fitted: for each clip whether the classifier is fitted to it, or tested on it.
    """
    fit = [n for n, fitted in enumerate(is_fitted) if fitted]
    test = [n for n, fitted in enumerate(is_fitted) if not fitted]
    fit_y = np.concatenate([labels[n] for n in fit])
    test_y = np.concatenate([labels[n] for n in test])
    known = np.isin(test_y, fit_y)
    test_x = np.concatenate([clips[n] for n in test])[known]
    return linear(np.concatenate([clips[n] for n in fit]), fit_y, test_x, test_y[known])


def label_frames(peaks, labels, num_frames: int, reach: int = 4):
    """Which label each frame belongs to: that of the nearest peak, -1 where none is near.

    Args:
      peaks: [L] frames, rising, from `decoding.forced_alignment`.
      labels: [L].
      num_frames: A.
      reach: frames from a peak at most.

    Returns:
      int [A].
    """
    distance = np.abs(np.arange(num_frames)[:, None] - np.asarray(peaks)[None])
    nearest = distance.argmin(axis=1)
    return np.where(distance.min(axis=1) <= reach, np.asarray(labels)[nearest], -1)
