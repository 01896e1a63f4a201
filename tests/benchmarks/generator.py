"""Speed of the paper's generator on this machine, against torch on the same layers.

  python tests/benchmarks/generator.py [configs/multi.py variant]

The WaveNet of the generator (its 30 layers with their condition projections; nearly all
of its cost) forward in float32, one second of audio, alternating with the same layers
in torch eager (medians). The part with torch needs `pip install torch`.
"""

import functools
import importlib.util
import math
import sys

import features
import jax
import numpy as np

from configs import multi
from svc_jax.models.wavenet import WaveNet

NUM_SAMPLES = 16_000


def torch_weights(params) -> dict:
    """Layers' weights for torch: name -> [C_out, C_in, K] and bias or None."""
    import torch

    def conv(layer):
        norm = np.sqrt(np.square(layer["direction"]).sum((0, 1)))
        kernel = layer["direction"] * (layer["scale"] / norm)
        weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(2, 1, 0)))
        bias = torch.from_numpy(np.array(layer["bias"])) if "bias" in layer else None
        return weight, bias

    named = {name: layer for name, layer in params.items() if name != "layers"}
    layers = params.get("layers", {})
    for k, parts in enumerate(layers.values()):
        cycles = len(parts["skip"]["bias"])
        for cycle in range(cycles):
            own = jax.tree.map(lambda x, cycle=cycle: x[cycle], parts)
            index = cycle * len(layers) + k
            named |= {f"layer{index}/{name}": part for name, part in own.items()}
    return {name: conv(layer.get("dilated", layer)) for name, layer in named.items()}


def torch_wavenet(dilations, kernel_size):
    """The WaveNet in torch's own layers, channels first; weights as `torch_weights`."""
    import torch
    from torch.nn import functional

    def run(convs, z, condition, voice):
        def apply(name, x, **kwargs):
            weight, bias = convs[name]
            return functional.conv1d(x, weight, bias, **kwargs)

        x = apply("input", z)
        condition = torch.cat(
            [condition, voice[..., None].expand(-1, -1, condition.shape[-1])], 1
        )
        skips = 0.0
        for index, dilation in enumerate(dilations):
            padding = dilation * (kernel_size - 1) // 2
            gate = apply(f"layer{index}/gate", x, dilation=dilation, padding=padding)
            gate = gate + apply(f"layer{index}/condition", condition)
            a, b = gate.chunk(2, 1)
            gate = torch.tanh(a) * torch.sigmoid(b)
            skips = skips + apply(f"layer{index}/skip", gate)
            x = (x + apply(f"layer{index}/residual", gate)) * math.sqrt(0.5)
        x = torch.relu(skips * math.sqrt(1 / len(dilations)))
        return apply("output1", torch.relu(apply("output0", x)))[:, 0]

    return run


def wavenet(config):
    """The WaveNet of config.generator, random parameters, and a second to sing."""
    network = WaveNet(
        config.channels,
        config.gate_channels,
        config.skip_channels,
        config.kernel_size,
        tuple(config.dilations),
    )
    rng = np.random.default_rng(0)
    shapes = (
        (1, NUM_SAMPLES, 1),
        (1, NUM_SAMPLES, 3 * config.context_channels),
        (1, config.embedding_size),
    )
    inputs = [rng.standard_normal(shape, np.float32) for shape in shapes]
    params = jax.jit(network.init)(jax.random.key(0), *inputs)["params"]
    return network, jax.device_get(params), inputs


def main():
    config = multi.get_config(*sys.argv[1:2]).generator
    network, params, inputs = wavenet(config)
    forward = jax.jit(lambda params, *x: network.apply({"params": params}, *x))

    def ours():
        return jax.block_until_ready(forward(params, *inputs))

    if importlib.util.find_spec("torch") is None:
        (seconds,) = features.medians(ours)
        print(f"{seconds:.3f} s per second of audio; torch is not installed")
        return
    import torch

    reference = functools.partial(
        torch_wavenet(tuple(config.dilations), config.kernel_size),
        torch_weights(params),
    )
    z, condition, voice = map(torch.from_numpy, inputs)
    z, condition = (x.transpose(1, 2).contiguous() for x in (z, condition))
    with torch.inference_mode():
        difference = np.abs(ours() - reference(z, condition, voice).numpy()).max()
        mine, theirs = features.medians(ours, lambda: reference(z, condition, voice))
    print(
        f"per second of audio: jax {mine:.3f} s, torch {theirs:.3f} s,"
        f" {theirs / mine:.2f} x as fast as torch (largest difference {difference:.1e})"
    )


if __name__ == "__main__":
    main()
