"""The paper's WaveNet on a GPU: bfloat16, against torch.compile on the same layers.

  python tests/benchmarks/gpu.py [batch size ...]

Forward and backward pass by turns in one run (medians), one second of audio for each
example; parameters are float32. For every batch size, 1 to 64 unless they are named:
milliseconds, seconds of audio per second, share of the card's dense bfloat16 peak where
it is in PEAKS, and largest memory in use, of JAX and of torch. The batch saturates the
card where audio per second stops growing. torch runs in CUDA graphs
(mode="reduce-overhead"), XLA in command buffers. Needs `pip install -e ".[train,cuda]"
torch`; without a GPU it only shows that it runs.
"""

import functools
import os
import sys

# Both share the card.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import features as timing
import generator
import jax
import jax.numpy as jnp
import torch

from configs import multi
from svc_jax import describe

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def ours(network, params, inputs):
    """(a pass as a function that ends when it is done, its FLOPs)."""

    def power(params, *inputs):
        cast = [x.astype(jnp.bfloat16) for x in inputs]
        return jnp.mean(jnp.square(network.apply({"params": params}, *cast)))

    gradients = jax.grad(power)
    program = jax.make_jaxpr(gradients)(params, *inputs)
    count = sum(describe.multiply_adds(program).values())
    compiled = jax.jit(gradients)
    return lambda: jax.block_until_ready(compiled(params, *inputs)), 2 * count


def theirs(config, params, inputs, device):
    """The same pass of torch."""
    convs = {
        name: tuple(
            x.to(device).requires_grad_() if x is not None else None for x in conv
        )
        for name, conv in generator.torch_weights(params).items()
    }
    leaves = [x for conv in convs.values() for x in conv if x is not None]
    z, condition, voice = (
        torch.tensor(jax.device_get(x), device=device) for x in inputs
    )
    z, condition = (x.transpose(1, 2).contiguous() for x in (z, condition))
    run = generator.torch_wavenet(tuple(config.dilations), config.kernel_size)

    @functools.partial(torch.compile, mode="reduce-overhead")
    def power():
        return run(convs, z, condition, voice).square().mean()

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = power()
        torch.autograd.grad(loss, leaves, allow_unused=True)  # the last residual
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def memory(device) -> list[float]:
    """Largest memory in use so far, in GB: of JAX, of torch; 0 where nobody counts."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return [stats.get("peak_bytes_in_use", 0) / 1e9, peak / 1e9]


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    card = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    print(
        f"{card}, JAX {jax.__version__} on {jax.devices()[0]}, torch {torch.__version__}"
    )
    peak = next((peak for name, peak in PEAKS.items() if name in card), None)
    config = multi.get_config("paper").generator
    network, params, one = generator.wavenet(config)
    for size in map(int, sys.argv[1:] or BATCH_SIZES):
        inputs = [jnp.repeat(jnp.asarray(x), size, axis=0) for x in one]
        mine, flops = ours(network, params, inputs)
        seconds = timing.medians(mine, theirs(config, params, inputs, device))
        for name, value, used in zip(
            ("jax", "torch"), seconds, memory(device), strict=True
        ):
            share = f", {flops / value / peak:.1%} of the peak" if peak else ""
            print(
                f"batch {size:3d} {name:5s} {value * 1e3:9.1f} ms, {size / value:8.1f} s/s"
                f"{share}, {used:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
