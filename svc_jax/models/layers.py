"""Building blocks of the generators and the discriminator.

Their parameters are float32; they compute in the type of what they are given.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from svc_jax.models.convolutions import convolve, norm, normalised
from svc_jax.models.gated_layers import weights_of

# Flax's own kaiming_normal is a truncated one.
KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Conv(nn.Module):
    """Weight-normalised convolution along time, not causal.

    kernel = scale * direction / |direction|, the norm over (K, C_in). Kaiming-normal
    direction, scale equal to its norm, zero bias: Parallel WaveGAN's initialisation.
    """

    channels: int
    kernel_size: int = 1
    dilation: int = 1
    use_bias: bool = True
    convolution: Callable = convolve

    @nn.compact
    def __call__(self, x):
        """[B, N, C_in] -> [B, N, channels]."""
        kernel = self.normalised_kernel(x.shape[-1]).astype(x.dtype)
        x = self.convolution(x, kernel, dilation=self.dilation)
        return x + self.bias().astype(x.dtype) if self.use_bias else x

    def normalised_kernel(self, in_channels: int):
        """[kernel_size, in_channels, channels]."""
        shape = (self.kernel_size, in_channels, self.channels)
        direction = self.param("direction", KAIMING_NORMAL, shape)
        scale = self.param("scale", lambda _: norm(direction))
        return normalised(direction, scale)

    def bias(self):
        """[1, 1, channels]."""
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        return bias[None, None]


class VoiceTable(nn.Module):
    """A learnt embedding for each singer; with one singer, none."""

    num_singers: int
    embedding_size: int

    @nn.compact
    def __call__(self, singer_id):
        """[B] int32 -> [B, embedding_size]; of size 0 with one singer."""
        if self.num_singers == 1:
            return jnp.zeros((*singer_id.shape, 0))
        shape = (self.num_singers, self.embedding_size)
        table = self.param("embedding", nn.initializers.normal(1.0), shape)
        return jnp.take(table, singer_id, axis=0)


class Upsample(nn.Module):
    """Repeats each frame, then smooths along time; the same filter for all channels.

    One stage per factor s: nearest repetition, then a filter of 2 s + 1 taps that
    starts as a mean (Parallel WaveGAN's upsampling network).

    Attributes:
      factors: of the stages.
      as_product: as TPUs are fast at; it has many zeros.
    """

    factors: Sequence[int]
    as_product: bool = False

    @nn.compact
    def __call__(self, x):
        """[B, T, C] -> [B, T * product of factors, C]."""
        upsampled = _upsampled_as_product if self.as_product else _upsampled
        for index, factor in enumerate(self.factors):
            taps = 2 * factor + 1
            smoothing = self.param(
                f"filter{index}", nn.initializers.constant(1 / taps), (taps,)
            )
            shares = _of_each_example(_shares(smoothing), x.shape[0])
            x = upsampled(x, shares.astype(x.dtype))
        return x


def _shares(taps):
    """Of frames t - 1, t and t + 1 in each of the s samples that frame t becomes.

    A repeated frame is heard by several of the 2 s + 1 taps: [2 s + 1] -> [3, s].
    """
    factor = taps.shape[0] // 2
    heard = (np.arange(factor)[:, None] + np.arange(2 * factor + 1)) // factor
    return jnp.stack(
        [jnp.sum(jnp.where(heard == k, taps[None], 0), axis=1) for k in range(3)]
    )


def _of_each_example(shares, batch_size: int):
    """[3, s] -> [B, 3, s], so that gradients are summed on a chip before they cross.

    Without the barrier XLA for TPUs sums over chips first: by time or by channel.
    """
    return lax.optimization_barrier(
        jnp.broadcast_to(shares, (batch_size, *shares.shape))
    )


def _around(x):
    """The frames before, at and after each: [B, T, C] -> three of the same."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return [padded[:, k : k + x.shape[1]] for k in range(3)]


def _upsampled(x, shares):
    """[B, T, C], [B, 3, s] -> [B, s T, C]."""
    parts = enumerate(_around(x))
    mixed = sum(x[:, :, None] * shares[:, k, None, :, None] for k, x in parts)
    return mixed.reshape(x.shape[0], -1, x.shape[-1])


def _upsampled_as_product(x, shares):
    """`_upsampled` as one matrix product of all channels."""
    batch_size, _, channels = x.shape
    identity = jnp.eye(channels, dtype=x.dtype)
    mixing = jnp.einsum("bks,cd->bkcsd", shares, identity)
    mixed = jnp.concatenate(_around(x), axis=-1) @ mixing.reshape(
        batch_size, 3 * channels, -1
    )
    return mixed.reshape(batch_size, -1, channels)


class GatedLayer(nn.Module):
    """Dilated convolution -> (+ condition) -> tanh * sigmoid."""

    gate_channels: int
    kernel_size: int
    dilation: int
    convolution: Callable = convolve

    @nn.compact
    def __call__(self, x, condition=0.0):
        """[B, N, C], [B, N or 1, gate_channels] -> [B, N, gate_channels // 2]."""
        x = Conv(
            self.gate_channels,
            self.kernel_size,
            self.dilation,
            convolution=self.convolution,
            name="dilated",
        )(x)
        filtered, gate = jnp.split(x + condition, 2, axis=-1)
        return jnp.tanh(filtered) * nn.sigmoid(gate)


# What the backward pass finds of a layer's inside, and what it computes again: the
# policies of jax.checkpoint, by a config's name; none: it finds everything.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def cycle_length(dilations: Sequence[int]) -> int:
    """Of the shortest cycle that dilations repeat: (1, 2, 1, 2) -> 2; of none, 0."""
    dilations = tuple(dilations)
    for length in range(1, len(dilations) + 1):
        cycle, rest = dilations[:length], len(dilations) % length
        if not rest and cycle * (len(dilations) // length) == dilations:
            return length
    return 0


class DilatedLayers(nn.Module):
    """Layers of one kind, one after the other; a loop over the cycles of dilations.

    The loop's body is one cycle: it is compiled once, and its end is where XLA's CPU
    compiler stops; of layers in a row it fuses the sums of all residuals before a layer
    into that layer, whose cost is quadratic. The parameters of a layer of the cycle are
    those of all cycles, stacked: an optimiser has the fewer to do.

    Attributes:
      layer: dilation -> a module of (carry, *given) -> carry.
      dilations: of the layers.
      remat: a policy of REMAT.
      at_once: (parameters of all layers, stacked; carry; *given) -> carry, to be called
        instead of the layers.
    """

    layer: Callable[[int], nn.Module]
    dilations: Sequence[int]
    remat: Callable | None = None
    at_once: Callable | None = None

    @nn.compact
    def __call__(self, carry, *given):
        """A tree of arrays, and arrays that every layer is given -> the tree."""
        if not self.dilations:
            return carry
        length = cycle_length(self.dilations)
        count = len(self.dilations) // length
        layers = [self.layer(dilation) for dilation in self.dilations[:length]]
        params = [
            self.param(f"layer{k}", _stacked_init(layer, count), carry, *given)
            for k, layer in enumerate(layers)
        ]
        if self.at_once and not self.is_initializing():
            stacked = jax.tree.map(lambda *of_cycle: _interleaved(of_cycle), *params)
            return self.at_once(stacked, carry, *given)

        def cycle(carry, params):
            for layer, layer_params in zip(layers, params, strict=True):
                apply = layer.apply
                if self.remat:
                    apply = jax.checkpoint(apply, policy=self.remat)
                carry = apply({"params": layer_params}, carry, *given)
            return carry, None

        return lax.scan(cycle, carry, params)[0]


def _stacked_init(layer: nn.Module, count: int) -> Callable:
    def init(rng, *args):
        def one(rng):
            return layer.init(rng, *args)["params"]

        return jax.vmap(one)(jax.random.split(rng, count))

    return init


def _interleaved(arrays):
    """Arrays [cycles, ...] of the layers of a cycle -> [layers, ...], in their order."""
    stacked = jnp.stack(arrays, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


class ContextLayer(nn.Module):
    """Residual layer of a gated dilated convolution."""

    channels: int
    gate_channels: int
    kernel_size: int
    dilation: int
    convolution: Callable = convolve

    @nn.compact
    def __call__(self, x):
        """[B, T, channels] -> the same."""
        gated = GatedLayer(
            self.gate_channels,
            self.kernel_size,
            self.dilation,
            self.convolution,
            name="gate",
        )(x)
        return x + Conv(self.channels, name="residual")(gated)


class ContextStack(nn.Module):
    """Looks around in one feature: residual layers of gated dilated convolutions."""

    channels: int
    gate_channels: int
    kernel_size: int
    dilations: Sequence[int]
    remat: Callable | None = None
    convolution: Callable = convolve
    gated_layers: Callable | None = None

    @nn.compact
    def __call__(self, x):
        """[B, T, C_in] -> [B, T, channels]."""
        x = Conv(self.channels, name="input")(x)
        layer = functools.partial(
            ContextLayer,
            self.channels,
            self.gate_channels,
            self.kernel_size,
            convolution=self.convolution,
        )
        at_once = self._at_once if self.gated_layers else None
        return DilatedLayers(layer, self.dilations, self.remat, at_once, name="layers")(
            x
        )

    def _at_once(self, params, x):
        nothing = jnp.zeros((*x.shape[:-1], 0), x.dtype)
        weights = weights_of(params)
        return self.gated_layers(x, nothing, weights, self.dilations, 1.0)


def receptive_field(kernel_size: int, dilations: Sequence[int]) -> int:
    """How many inputs one output of a stack of dilated convolutions sees."""
    return 1 + (kernel_size - 1) * int(np.sum(dilations))
