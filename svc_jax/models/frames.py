"""Layers at the frame rate that sing a whole recording or, the same, a stream of it.

A layer that looks around sees zeros beyond the ends of a recording. In a stream it
remembers what came before in the collection `stream`, and says its output as late as
it looks ahead; the outputs are the same numbers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

STREAM = "stream"


def streams(module: nn.Module) -> bool:
    """Whether a module sings a block of a stream."""
    return module.is_mutable_collection(STREAM) and not module.is_initializing()


def standardise(x):
    """Each frame to mean 0 and deviation 1 over its channels: [B, T, C].

    Computed in float32, whatever the type of x.
    """
    dtype, x = x.dtype, x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(variance + 1e-6)).astype(dtype)


class Margin(nn.Module):
    """Gives frames their neighbours.

    Attributes:
      before: frames needed before each one.
      after: frames needed after each one; in a stream, how late the output is.
    """

    before: int
    after: int

    @nn.compact
    def __call__(self, x):
        """[B, T, C] -> [B, before + T + after, C]."""
        batch_size, _, size = x.shape
        width = self.before + self.after
        if not streams(self):
            return jnp.pad(x, ((0, 0), (self.before, self.after), (0, 0)))
        past = self.variable(
            STREAM, "past", jnp.zeros, (batch_size, width, size), x.dtype
        )
        joined = jnp.concatenate([past.value, x], axis=1)
        past.value = joined[:, joined.shape[1] - width :]
        return joined


class Delay(nn.Module):
    """Nothing for a recording; in a stream, holds frames back."""

    frames: int

    @nn.compact
    def __call__(self, x):
        """[B, T, C] -> [B, T, C]."""
        return Margin(0, self.frames)(x)[:, : x.shape[1]]


class RunningSum(nn.Module):
    """The sum of all frames so far."""

    @nn.compact
    def __call__(self, x):
        """[B, T] -> [B, T], each frame with all before it; integers may wrap around."""
        total = jnp.cumsum(x, axis=1, dtype=x.dtype)
        if streams(self):
            past = self.variable(STREAM, "past", jnp.zeros, (len(x), 1), x.dtype)
            total += past.value
            past.value = total[:, -1:]
        return total


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then a network for each frame, added to the input.

    Its parameters are float32; it computes in the type of x.

    ConvNeXt (arXiv 2201.03545) along time, as in Vocos (arXiv 2306.00814); what the
    voice changes is the normalisation's scale and shift (adaptive layer norm).

    Attributes:
      kernel_size: in frames.
      lookahead: frames seen after each one.
      expansion: hidden channels of a frame's network, in multiples of its own.
      scale: what the block's output is multiplied by at first.
    """

    kernel_size: int
    lookahead: int
    expansion: int
    scale: float

    @nn.compact
    def __call__(self, x, voice, real):
        """Looks around once.

        Args:
          x: [B, T, C].
          voice: [B, E].
          real: [B, T, 1], 1 for the frames of the recording, 0 outside of it.

        Returns:
          (x, real), in a stream `lookahead` frames later.
        """
        _, total, channels = x.shape
        dtype = x.dtype
        before = self.kernel_size - 1 - self.lookahead
        taps = self.param(
            "depthwise",
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", 0, 1),
            (self.kernel_size, channels),
        ).astype(dtype)
        joined = Margin(before, self.lookahead, name="margin")(x * real.astype(dtype))
        # Shifted products instead of a grouped convolution: one fused loop.
        seen = sum(
            joined[:, k : k + total] * taps[None, None, k]
            for k in range(self.kernel_size)
        )
        modulation = nn.Dense(
            2 * channels, dtype=dtype, kernel_init=nn.initializers.zeros, name="voice"
        )(voice)
        scale, shift = jnp.split(modulation[:, None], 2, axis=-1)
        hidden = standardise(seen) * (1 + scale) + shift
        expand = nn.Dense(self.expansion * channels, dtype=dtype, name="expand")
        contract = nn.Dense(channels, dtype=dtype, name="contract")
        hidden = contract(nn.gelu(expand(hidden)))
        gain = self.param("gain", nn.initializers.constant(self.scale), (channels,))
        gain = gain.astype(dtype)[None, None]
        x = joined[:, before : before + total] + hidden * gain
        return x, Delay(self.lookahead, name="late")(real)
