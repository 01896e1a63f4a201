"""Wav2Letter, the content network (Collobert et al. 2016, arXiv 1609.03193)."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from svc_jax import dsp
from svc_jax.models.convolutions import convolve

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz' @")  # the published labels; blank last
_EPSILON = 1e-5  # of the norms' variance
_MOMENTUM = 0.99  # of what is remembered of batches


class Wav2Letter(nn.Module):
    """Convolutions over 39 MFCC features to label scores at half their rate.

    The defaults are the network Arm published; see method.md, section 7.

    Attributes:
      channels: of the layers before the wide ones.
      wide_channels: of the two wide layers before the output.
      num_labels: labels, the blank included.
      kernels: of the layers before the wide ones; the first has stride 2.
      wide_kernel: of the first wide layer.
      per_coefficient: which MFCCs it reads, see `dsp.mfcc_stats`.
      dropout: share of activations dropped, where a `dropout` key is given.
      normed: whether the input is scaled, and each layer but the last batch-normalised
        (arXiv 1502.03167), as suits training; `fold_norms` makes it a plain network.
    """

    channels: int = 250
    wide_channels: int = 2000
    num_labels: int = len(LETTERS)
    kernels: Sequence[int] = (48, 7, 7, 7, 7, 7, 7, 7)
    wide_kernel: int = 32
    per_coefficient: bool = False
    dropout: float = 0.0
    normed: bool = False

    @nn.compact
    def __call__(self, mfcc, num_frames=None, train: bool = False):
        """Reads the content of speech or song.

        Args:
          mfcc: [B, T, 39], normalised.
          num_frames: [B] real frames of the T, or None for all; a padded example gives
            what it would give alone.
          train: whether norms are of this batch, and remembered.

        Returns:
          dict of `hidden` [B, A, channels], `wide` [B, A, wide_channels] and `logits`
          [B, A, num_labels], A = ceil(T / 2).
        """
        total = mfcc.shape[1]
        num_frames = (
            jnp.full(mfcc.shape[0], total) if num_frames is None else num_frames
        )
        real = dsp.mask(num_frames, total)[..., None]
        mfcc = jnp.where(real, mfcc, 0.0)
        if self.normed:
            mfcc = mfcc / self._deviation(mfcc, real, train)[None, None]
        real = real[:, ::2]

        def layer(x, name, channels, kernel_size, stride=1):
            # What lies beyond the end is zero for each layer, as in the padding.
            x = SameConvolution(channels, kernel_size, stride, name=name)(x)
            if self.normed:
                x = nn.BatchNorm(
                    not train,
                    momentum=_MOMENTUM,
                    epsilon=_EPSILON,
                    name=f"{name}_norm",
                )(x, mask=real)
            x = nn.leaky_relu(x, 0.2)
            x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
            return jnp.where(real, x, 0.0)

        x = layer(mfcc, "conv1", self.channels, self.kernels[0], stride=2)
        for number, kernel_size in enumerate(self.kernels[1:], 2):
            x = layer(x, f"conv{number}", self.channels, kernel_size)
        hidden = x
        x = layer(x, "wide1", self.wide_channels, self.wide_kernel)
        wide = layer(x, "wide2", self.wide_channels, 1)
        # Near zero at first: CTC then starts from a fair chance for every label.
        small = nn.initializers.normal(0.01)
        logits = SameConvolution(self.num_labels, 1, 1, small, name="output")(wide)
        return {"hidden": hidden, "wide": wide, "logits": logits}

    def _deviation(self, mfcc, real, train: bool):
        """Of each coefficient; the first is many times as large as the others."""
        seen = self.variable("batch_stats", "deviation", jnp.ones, mfcc.shape[-1])
        if not train:
            return seen.value
        deviation = jnp.std(mfcc, axis=(0, 1), where=real)
        seen.value = _MOMENTUM * seen.value + (1 - _MOMENTUM) * deviation
        return deviation

    def context_frames(self) -> int:
        """How many of its own frames to each side an output depends on."""
        first = -(-self.kernels[0] // 4)
        return first + sum(k // 2 for k in (*self.kernels[1:], self.wide_kernel))


def fold_norms(params, batch_stats):
    """The plain network that equals a normed one outside training.

    Args:
      params: of a normed Wav2Letter.
      batch_stats: its norms' means and variances.

    Returns:
      Parameters of the same Wav2Letter with normed=False.
    """
    folded = {}
    for name, layer in params.items():
        if name.endswith("_norm"):
            continue
        kernel, bias = layer["kernel"], layer["bias"]
        if name == "conv1":
            kernel = kernel / batch_stats["deviation"][None, :, None]
        if norm := params.get(f"{name}_norm"):
            seen = batch_stats[f"{name}_norm"]
            gain = norm["scale"] / jnp.sqrt(seen["var"] + _EPSILON)
            kernel = kernel * gain[None, None]
            bias = (bias - seen["mean"]) * gain + norm["bias"]
        folded[name] = {"kernel": kernel, "bias": bias}
    return folded


class SameConvolution(nn.Module):
    """Plain convolution along time with TensorFlow's SAME padding."""

    channels: int
    kernel_size: int
    stride: int
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x):
        """[B, T, C] -> [B, ceil(T / stride), channels]."""
        shape = (self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        num_out = -(-x.shape[1] // self.stride)
        reach = max((num_out - 1) * self.stride + self.kernel_size - x.shape[1], 0)
        padding = (reach // 2, reach - reach // 2)
        x = convolve(x, kernel, stride=self.stride, padding=padding)
        return x + bias[None, None]
