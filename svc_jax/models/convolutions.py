"""Convolutions along time, in the forms that devices are fast at."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def normalised(direction, scale):
    """The kernel of a convolution from its parameters, [..., K, C_in, C] and [..., C]."""
    return direction * (scale / norm(direction))[..., None, None, :]


def norm(direction):
    """Of each output's part of a kernel: [..., K, C_in, C] -> [..., C]."""
    return jnp.sqrt(jnp.sum(jnp.square(direction), axis=(-3, -2)))


def convolve(x, kernel, *, dilation: int = 1, stride: int = 1, padding=None):
    """Convolution along time: [B, N, C_in], [K, C_in, C_out] -> [B, N', C_out].

    `padding` is (before, after); by default what keeps the length at stride 1. It is
    explicit because "SAME" with dilation is mistranslated by ONNX exporters.
    """
    if padding is not None:
        return _convolve(x, kernel, dilation, stride, padding)
    if kernel.shape[0] == stride == 1:
        if kernel.shape[1] == 1:
            return x * kernel  # a TPU would multiply with 127 zeros
        return x @ kernel[0]  # whose gradients are faster than a convolution's
    padding = _around(kernel, dilation)
    if stride > 1:
        return _convolve(x, kernel, dilation, stride, padding)
    return _keep_length(x, kernel, dilation, padding)


def _convolve(x, kernel, dilation, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride,),
        padding=(padding,),
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _keep_length(x, kernel, dilation, padding):
    """A convolution whose gradients are fast in a loop, too.

    XLA's CPU compiler brings convolutions into the form that its fast code wants, but
    not those in the body of a loop, of which the gradients' are then ten times as slow.
    """
    return _convolve(x, kernel, dilation, 1, padding)


def _keep_length_forward(x, kernel, dilation, padding):
    return _keep_length(x, kernel, dilation, padding), (x, kernel)


def _keep_length_backward(dilation, padding, kept, gradient):
    x, kernel = kept
    turned = jnp.flip(kernel, axis=0).swapaxes(1, 2)
    of_kernel = [
        jnp.einsum("bni,bno->io", tap, gradient)
        for tap in _taps(x, kernel, dilation, padding)
    ]
    return (
        _convolve(gradient, turned, dilation, 1, padding[::-1]),
        jnp.stack(of_kernel).astype(kernel.dtype),
    )


_keep_length.defvjp(_keep_length_forward, _keep_length_backward)


def convolve_as_product(x, kernel, *, dilation: int = 1):
    """`convolve` that keeps the length, as one matrix product of shifted inputs.

    TPUs are built for matrix products: there it is faster by XLA's estimate
    (launch/PERFORMANCE.md), on CPUs slower.
    """
    taps = _taps(x, kernel, dilation, _around(kernel, dilation))
    if kernel.shape[-1] == 1:  # a product would fill one of 128 columns
        heard = sum(tap * kernel[k, None, None, :, 0] for k, tap in enumerate(taps))
        return jnp.sum(heard, axis=-1, keepdims=True)
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _around(kernel, dilation: int) -> tuple[int, int]:
    """Padding before and after that keeps the length."""
    reach = dilation * (kernel.shape[0] - 1)
    return reach // 2, reach - reach // 2


def _taps(x, kernel, dilation: int, padding) -> list:
    """What each tap of a kernel is multiplied with: [B, N, C_in] for each."""
    padded = jnp.pad(x, ((0, 0), padding, (0, 0)))
    starts = range(0, dilation * kernel.shape[0], dilation)
    return [lax.slice_in_dim(padded, n, n + x.shape[1], axis=1) for n in starts]


LEAK = 0.2  # of the rectifier between a discriminator's layers


def leaky_layers(x, taps, bias, dilations: Sequence[int]) -> list:
    """Dilated convolutions, each with a leaky rectifier, one after the other.

    Args:
      x: [B, N, C].
      taps: [L, 3, C, C].
      bias: [L, C].
      dilations: of each layer.

    Returns:
      What each layer makes of it, L arrays [B, N, C].
    """
    maps = []
    for index, dilation in enumerate(dilations):
        x = convolve(x, taps[index], dilation=dilation) + bias[index, None, None]
        x = jnp.where(x >= 0, x, LEAK * x)
        maps.append(x)
    return maps


# By the name that config.convolution gives them.
CONVOLUTIONS = {"direct": convolve, "product": convolve_as_product}
