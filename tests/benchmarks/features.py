"""Speed of the feature extractors on this machine.

  python tests/benchmarks/features.py

Prints how many times faster than real time loudness, sine excitation and CREPE tiny
are, what CREPE tiny and the published Wav2Letter take in bfloat16, and CREPE tiny
against torch on the same network, alternating in one run (medians).
The part with torch needs `pip install torch`.
"""

import functools
import importlib.util
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from svc_jax import dsp, excitation, pitch
from svc_jax.models import crepe, wav2letter

SECONDS = 20
SAMPLE_RATE = 16_000
REPEATS = 9


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def medians(*functions, repeats: int = REPEATS) -> list[float]:
    """Median seconds of each function, run in turns so that they share the noise."""
    for function in functions:
        function()
    rounds = [[timed(function) for function in functions] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def torch_crepe(params):
    """CREPE in torch's own layers, with the same weights; normalised frames in."""
    import torch
    from torch.nn import functional

    weights = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), params)

    def run(frames):
        x = torch.from_numpy(frames)[:, None]
        for number, (before, after) in enumerate(crepe.PADDINGS, 1):
            conv, norm = weights[f"conv{number}"], weights[f"norm{number}"]
            x = functional.conv1d(
                functional.pad(x, (before, after)),
                conv["kernel"].permute(2, 1, 0).contiguous(),
                conv["bias"],
                stride=crepe.STRIDES[number - 1],
            )
            x = functional.batch_norm(
                functional.relu(x),
                norm["mean"],
                norm["var"],
                norm["scale"],
                norm["bias"],
                eps=1e-3,
            )
            x = functional.max_pool1d(x, 2)
        x = x.permute(0, 2, 1).reshape(len(frames), -1)
        head = weights["classifier"]
        return torch.sigmoid(x @ head["kernel"] + head["bias"]).numpy()

    return run


def compare_precisions(name: str, network, inputs):
    """Prints the seconds of a network in float32, and in bfloat16 throughout."""
    params = jax.jit(network.init)(jax.random.key(0), inputs)["params"]
    apply = jax.jit(lambda params, x: network.apply({"params": params}, x))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, inputs))
    whole_program = apply.lower(params, inputs).compile()
    # There are no spectra in bfloat16.
    with mock.patch.object(crepe, "fourier", crepe.convolve):
        half_program = apply.lower(*half).compile()
    full, halved = medians(
        lambda: jax.block_until_ready(whole_program(params, inputs)),
        lambda: jax.block_until_ready(half_program(*half)),
        repeats=5,
    )
    print(
        f"{name}: float32 {full * 1e3:.0f} ms, bfloat16 {halved * 1e3:.0f} ms,"
        f" {halved / full:.2f} x as long"
    )


def main():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((1, SECONDS * SAMPLE_RATE)).astype(np.float32) * 0.1
    f0_hz = np.full((1, SECONDS * 250), 220.0, np.float32)
    phase = np.zeros(1, np.float32)
    loudness = jax.jit(
        functools.partial(dsp.loudness_db, sample_rate=SAMPLE_RATE, hop_length=64)
    )
    sine = jax.jit(
        functools.partial(
            excitation.sine_excitation, sample_rate=SAMPLE_RATE, hop_length=64
        )
    )
    network = crepe.Crepe("tiny")
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 1024)))["params"]
    hear = jax.jit(functools.partial(pitch.crepe_activation, network, hop_length=160))
    seconds = medians(
        lambda: jax.block_until_ready(loudness(audio)),
        lambda: jax.block_until_ready(sine(f0_hz, audio, phase)),
        lambda: jax.block_until_ready(hear(params, audio)),
    )
    for name, value in zip(("loudness", "sine", "CREPE tiny"), seconds, strict=True):
        print(f"{name:12s} {SECONDS / value:7.0f} x real time")

    frames = jax.random.normal(jax.random.key(1), (256, crepe.FRAME_LENGTH))
    compare_precisions("CREPE tiny", network, frames)
    mfcc = jax.random.normal(jax.random.key(1), (1, 500, 39))
    compare_precisions("Wav2Letter", wav2letter.Wav2Letter(), mfcc)

    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: no comparison")
        return
    import torch

    frames = np.asarray(
        pitch.normalise_frames(dsp.frame(jnp.asarray(audio), 1024, 160)[0], 1e-8)
    )[:1024]
    reference = torch_crepe(params)
    apply = jax.jit(lambda params, x: network.apply({"params": params}, x)[0])
    with torch.inference_mode():
        difference = np.abs(apply(params, frames) - reference(frames)).max()
        ours, theirs = medians(
            lambda: jax.block_until_ready(apply(params, frames)),
            lambda: reference(frames),
        )
    print(
        f"CREPE tiny, {len(frames)} frames: jax {ours * 1e3:.0f} ms, torch"
        f" {theirs * 1e3:.0f} ms, {theirs / ours:.2f} x as fast as torch"
        f" (largest difference {difference:.1e})"
    )


if __name__ == "__main__":
    main()
