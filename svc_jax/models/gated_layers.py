"""What stacks of gated layers compute, in plain JAX, with the weights of all as arrays."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from svc_jax.models.convolutions import convolve, normalised


@flax.struct.dataclass
class Weights:
    """Of L layers of C channels.

    Attributes:
      taps: [L, 3, C, 2 C], of the dilated convolutions.
      gate_bias: [B or 1, L, 2 C]; a voice may be part of it.
      condition: [L, 3 C, 2 C], or [L, 0, 2 C] of layers that are told nothing.
      out: [L, C, 2 C], to the residual and to the skip, or [L, C, C] without a skip.
      out_bias: [L, 2 C] or [L, C].
    """

    taps: jax.Array
    gate_bias: jax.Array
    condition: jax.Array
    out: jax.Array
    out_bias: jax.Array


def gated_layers(
    x, condition, weights: Weights, dilations: Sequence[int], scale: float
):
    """Gated residual layers, one after the other (method.md, 2).

    Args:
      x: [B, N, C].
      condition: [B, N, 3 C], or [B, N, 0].
      weights: of the layers.
      dilations: of each layer.
      scale: of the sum of signal and residual.

    Returns:
      The sum of skips, or without skips the last signal; [B, N, C].
    """
    channels, skips = x.shape[-1], 0.0
    for index, dilation in enumerate(dilations):
        gate = convolve(x, weights.taps[index], dilation=dilation)
        gate += condition @ weights.condition[index] + weights.gate_bias[:, index, None]
        filtered, opened = jnp.split(gate, 2, axis=-1)
        gated = jnp.tanh(filtered) * jax.nn.sigmoid(opened)
        out = gated @ weights.out[index] + weights.out_bias[index, None, None]
        residual, skip = jnp.split(out, [channels], axis=-1)
        x, skips = (x + residual) * scale, skips + skip
    return skips if skips.shape[-1] else x


def weights_of(params, voice=None) -> Weights:
    """Weights from the parameters of layers, stacked.

    Args:
      params: of `wavenet.WaveNetLayer` or `layers.ContextLayer`, each [L, ...].
      voice: [B, E] that layers with a condition are told.
    """

    def kernel(name):
        return normalised(params[name]["direction"], params[name]["scale"])[:, 0]

    dilated = params["gate"]["dilated"]
    taps = normalised(dilated["direction"], dilated["scale"])
    gate_bias = dilated["bias"][None]
    out, out_bias = kernel("residual"), params["residual"]["bias"]
    if voice is None:
        condition = jnp.zeros((len(taps), 0, taps.shape[-1]))
    else:
        told = kernel("condition")
        condition, of_voice = jnp.split(told, [told.shape[1] - voice.shape[-1]], axis=1)
        gate_bias = gate_bias + jnp.einsum("be,lec->blc", voice, of_voice)
        out = jnp.concatenate([out, kernel("skip")], axis=-1)
        out_bias = jnp.concatenate([out_bias, params["skip"]["bias"]], axis=-1)
    return Weights(taps, gate_bias, condition, out, out_bias)
