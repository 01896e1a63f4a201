"""CREPE, the pitch network (Kim et al. 2018, arXiv 1802.06182; method.md, 7)."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from svc_jax import dsp
from svc_jax.models.convolutions import convolve

FRAME_LENGTH = 1024
NUM_BINS = 360
CAPACITIES = {"tiny": 4, "small": 8, "medium": 16, "large": 24, "full": 32}
FILTERS = (32, 4, 4, 4, 8, 16)  # per unit of capacity
KERNELS = (512, 64, 64, 64, 64, 64)
STRIDES = (4, 1, 1, 1, 1, 1)
PADDINGS = ((254, 254), *((31, 32),) * 5)
BLOCK = 16  # outputs of the first layer that are computed together


class Crepe(nn.Module):
    """Six blocks of convolution -> ReLU -> BatchNorm -> maxpool 2, then 360 pitches."""

    capacity: str = "tiny"

    @nn.compact
    def __call__(self, frames):
        """Hears the pitch of frames.

        Args:
          frames: [..., 1024] at 16 kHz, each of mean 0 and deviation 1.

        Returns:
          activation [..., 360] in (0, 1), one per pitch, 20 cents apart; embedding
          [..., D], the fifth block's output, for the perceptual loss.
        """
        leading = frames.shape[:-1]
        x = frames.reshape(-1, FRAME_LENGTH, 1)
        layers = zip(FILTERS, KERNELS, STRIDES, PADDINGS, strict=True)
        for number, (filters, *shape) in enumerate(layers, 1):
            channels = filters * CAPACITIES[self.capacity]
            x = Convolution(channels, *shape, name=f"conv{number}")(x)
            x = FrozenBatchNorm(name=f"norm{number}")(nn.relu(x))
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")
            if number == 5:
                embedding = x.reshape(*leading, -1)
        x = nn.Dense(NUM_BINS, name="classifier")(x.reshape(*leading, -1))
        return nn.sigmoid(x), embedding


class Convolution(nn.Module):
    """Plain convolution along time."""

    channels: int
    kernel_size: int
    stride: int
    padding: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        """[B, N, C] -> [B, N', channels]."""
        shape = (self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        if self.stride > 1:
            x = toeplitz(x, kernel, self.stride, self.padding, BLOCK)
        else:
            x = lax.platform_dependent(
                x,
                kernel,
                cpu=functools.partial(fourier, padding=self.padding),
                default=functools.partial(convolve, padding=self.padding),
            )
        return x + bias[None, None]


def toeplitz(x, kernel, stride: int, padding: tuple[int, int], block: int):
    """Convolution as a product with a band matrix that gives `block` outputs at once.

    What a CPU does well where channels are few: twice as fast as its convolution
    (tests/benchmarks/features.py).

    Args:
      x: [B, N, C_in].
      kernel: [K, C_in, C_out].
      stride: in samples.
      padding: zeros before and after.
      block: outputs at a time; a divisor of their number.

    Returns:
      [B, N', C_out].
    """
    batch, num_samples, in_channels = x.shape
    kernel_size, _, out_channels = kernel.shape
    num_out = (num_samples + sum(padding) - kernel_size) // stride + 1
    span = (block - 1) * stride + kernel_size
    flat = jnp.pad(x, ((0, 0), padding, (0, 0))).reshape(batch, -1)
    windows = dsp.frame(flat, span * in_channels, block * stride * in_channels)
    tap = np.arange(span)[:, None] - np.arange(block) * stride
    inside = (tap >= 0) & (tap < kernel_size)
    band = jnp.where(
        inside[..., None, None], kernel[np.where(inside, tap, 0)], 0.0
    )  # [span, block, C_in, C_out]
    band = band.transpose(0, 2, 1, 3).reshape(span * in_channels, block * out_channels)
    return (windows @ band).reshape(batch, num_out, out_channels)


def fourier(x, kernel, padding: tuple[int, int]):
    """Convolution of stride 1 as a product of spectra, whose transforms are matrices.

    A kernel of 64 samples over 8 to 128 of them costs a third of the arithmetic, with
    more channels a tenth; on a CPU it is 2 to 5 times as fast as its convolution.

    Args:
      x: [B, N, C_in].
      kernel: [K, C_in, C_out].
      padding: zeros before and after, K - 1 in all.

    Returns:
      [B, N, C_out].
    """
    num_samples = x.shape[1]
    # So long that only zeros come round the circle.
    length = num_samples + max(padding)
    length += length % 2
    frequency = 2 * np.pi * np.arange(length // 2 + 1) / length

    def waves(times):  # cosines and sines, [times, 2 F]
        phase = np.outer(times, frequency)
        return np.concatenate([np.cos(phase), np.sin(phase)], axis=1)

    into = np.float32(waves(np.arange(num_samples)))
    twice = np.where(np.arange(len(frequency)) % (length // 2), 2.0, 1.0) / length
    back = np.float32(waves(np.arange(num_samples)) * np.tile(twice, 2))

    spectrum = jnp.einsum("bnc,nf->bfc", x, into)
    spectrum = jnp.concatenate(jnp.split(spectrum, 2, axis=1), axis=-1)
    taps = np.float32(waves(np.arange(kernel.shape[0]) - padding[0]))
    cosines, sines = jnp.split(jnp.einsum("kcd,kf->fcd", kernel, taps), 2)
    rows = [
        jnp.concatenate([cosines, -sines], axis=-1),
        jnp.concatenate([sines, cosines], axis=-1),
    ]
    product = jnp.einsum("bfc,fcd->bfd", spectrum, jnp.concatenate(rows, axis=1))
    product = jnp.concatenate(jnp.split(product, 2, axis=-1), axis=1)
    return jnp.einsum("bfd,nf->bnd", product, back)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with the statistics of its training, as parameters."""

    @nn.compact
    def __call__(self, x):
        """[B, N, C] -> [B, N, C]."""
        size = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        mean = self.param("mean", nn.initializers.zeros, size)
        variance = self.param("var", nn.initializers.ones, size)
        slope = scale / jnp.sqrt(variance + 1e-3)
        return x * slope[None, None] + (bias - mean * slope)[None, None]
