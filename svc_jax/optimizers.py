"""Optimisers from plain values."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

Schedule = Callable[[jnp.ndarray], jnp.ndarray]


def halving(learning_rate: float, every: int) -> Schedule:
    """Learning rate as a function of the step: halved every `every` steps."""
    return lambda step: learning_rate * 0.5 ** (step // every)


def warmup_cosine(learning_rate: float, num_steps: int, warmup_steps: int) -> Schedule:
    """Learning rate as a function of the step: linear rise, cosine fall to zero."""
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, num_steps
    )


def clipped_radam(max_grad_norm: float, epsilon: float) -> optax.GradientTransformation:
    """Clips the global norm, then RAdam (Liu et al. 2020, arXiv 1908.03265).

    The updates are for a learning rate of 1; `apply` scales them.
    """
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_radam(eps=epsilon),
    )


def clipped_adamw(
    max_grad_norm: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """Clips the global norm, then AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).

    The updates are for a learning rate of 1; `apply` scales them.
    """
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(b2=b2),
        optax.add_decayed_weights(weight_decay),
    )


def apply(optimizer: optax.GradientTransformation, network, grads, learning_rate):
    """One update of a NetworkState.

    Args:
      optimizer: gives updates for a learning rate of 1.
      network: the NetworkState.
      grads: like its params.
      learning_rate: scalar.

    Returns:
      The new NetworkState.
    """
    updates, opt_state = optimizer.update(grads, network.opt_state, network.params)
    updates = optax.tree.scale(-learning_rate, updates)
    return network.replace(
        params=optax.apply_updates(network.params, updates), opt_state=opt_state
    )
