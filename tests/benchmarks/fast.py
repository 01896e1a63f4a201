"""Speed of the fast generator on this machine, beside the paper's and torch's Vocos.

  python tests/benchmarks/fast.py [synthesis] [conversion] [training]

Everything in float32; figures are seconds per second of audio, medians of turns in one
run. `synthesis` is the generator alone; its part with torch needs `pip install torch`.
`conversion` is wav to wav, features and generator apart. `training` is a whole update
in each phase, of a batch of two seconds; the paper's compiles for minutes.
"""

import functools
import importlib.util
import sys

import features as timing
import jax
import jax.numpy as jnp
import numpy as np

from configs import asr, fast, multi
from svc_jax import builders, describe, steps
from svc_jax.types import Batch, Features, Noise

SECONDS = 10
NUM_SINGERS = 18
TRAINING_BATCH = 2


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def small_wav2letter() -> dict:
    """The network that configs/asr.py trains on phones."""
    return {**asr.get_config().network.to_dict(), "num_labels": 40}


def build(config, f0_hop: int = 160):
    """Networks of a config with random frozen ones: (Networks, FrozenParams)."""
    extractor = builders.extractor(
        builders.geometry(config), small_wav2letter(), "wide", "tiny", f0_hop
    )
    frozen = jax.jit(extractor.init)(jax.random.key(0))
    return builders.networks(config, NUM_SINGERS, extractor), frozen


def song(geometry, asr_size: int, batch_size: int, num_samples: int):
    """Features of one note, and noise."""
    frames = (batch_size, geometry.num_frames(num_samples))
    features = Features(
        jnp.full(frames, 220.0),
        jnp.full(frames, -40.0),
        random(batch_size, geometry.num_asr_frames(num_samples), asr_size),
    )
    noise = random(batch_size, num_samples)
    return features, Noise(np.abs(noise) % 1, noise, jnp.zeros(batch_size))


def singer(config):
    """A function that sings SECONDS of audio, and its generator's parameters."""
    networks, _ = build(config)
    generator, extractor = networks.generator, networks.extractor
    params = jax.jit(functools.partial(steps.init_generator, generator, extractor))(
        jax.random.key(0)
    )
    num_samples = SECONDS * extractor.geometry.sample_rate
    features, noise = song(extractor.geometry, extractor.asr_size, 1, num_samples)
    voice = steps.embed(networks, params, jnp.zeros(1, jnp.int32))
    sing = jax.jit(functools.partial(steps.sing, networks))
    return (
        lambda: jax.block_until_ready(sing(params, features, voice, noise)),
        describe.num_parameters(params),
    )


def torch_vocos():
    """Vocos's published layers (arXiv 2306.00814) with random weights, 24 kHz."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, size, hidden):
            super().__init__()
            self.depthwise = nn.Conv1d(size, size, 7, padding=3, groups=size)
            self.norm = nn.LayerNorm(size, eps=1e-6)
            self.expand = nn.Linear(size, hidden)
            self.contract = nn.Linear(hidden, size)
            self.gain = nn.Parameter(torch.full((size,), 1 / 8))

        def forward(self, x):
            y = self.norm(self.depthwise(x).transpose(1, 2))
            y = self.contract(nn.functional.gelu(self.expand(y)))
            return x + (self.gain * y).transpose(1, 2)

    class Vocos(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv1d(100, 512, 7, padding=3)
            self.first = nn.LayerNorm(512, eps=1e-6)
            self.blocks = nn.ModuleList(Block(512, 1536) for _ in range(8))
            self.last = nn.LayerNorm(512, eps=1e-6)
            self.head = nn.Linear(512, 1026)

        def forward(self, mel):
            x = self.first(self.embed(mel).transpose(1, 2)).transpose(1, 2)
            for block in self.blocks:
                x = block(x)
            log_gain, phase = self.head(self.last(x.transpose(1, 2))).chunk(2, -1)
            spectrum = torch.polar(log_gain.exp().clamp(max=1e2), phase)
            return torch.istft(
                spectrum.transpose(1, 2), 1024, 256, window=torch.hann_window(1024)
            )

    network = Vocos().eval()
    mel = torch.from_numpy(random(1, 100, SECONDS * 24_000 // 256))

    def sing():
        with torch.inference_mode():
            network(mel)

    return sing, sum(parameter.numel() for parameter in network.parameters())


def synthesis():
    singers = {
        "fast, 16 kHz": singer(fast.get_config("16k")),
        "fast, 44.1 kHz": singer(fast.get_config("44k")),
        "the paper's, 16 kHz": singer(multi.get_config("paper")),
    }
    if importlib.util.find_spec("torch"):
        singers["Vocos's layers in torch, 24 kHz"] = torch_vocos()
    medians = timing.medians(*(sing for sing, _ in singers.values()))
    for (name, (_, count)), seconds in zip(singers.items(), medians, strict=True):
        print(f"{name:34s} {count:11,d} parameters  {seconds / SECONDS:.4f}")


def conversion():
    config = fast.get_config()
    sing, _ = singer(config)
    audio = 0.1 * random(1, SECONDS * config.geometry.sample_rate)
    parts = {"generator": sing}
    for f0_hop in (160, 320):
        networks, frozen = build(config, f0_hop)
        extract = jax.jit(functools.partial(networks.extractor.extract, frozen))
        parts[f"features, f0 every {f0_hop} samples"] = functools.partial(
            lambda extract: jax.block_until_ready(extract(audio)), extract
        )
    medians = timing.medians(*parts.values())
    for name, seconds in zip(parts, medians, strict=True):
        print(f"{name:34s} {seconds / SECONDS:.4f}")


def update(config, phase: steps.Phase, batch_size: int = TRAINING_BATCH):
    """One update of a phase: (a function, what it takes)."""
    networks, frozen = build(config)
    extractor = networks.extractor
    geometry, optimizers = extractor.geometry, builders.run_optimizers(config)
    objective = builders.objective(config)
    init = functools.partial(steps.init_state, networks, optimizers)
    state = jax.jit(init)(jax.random.key(0))
    features, noise = song(
        geometry, extractor.asr_size, batch_size, geometry.segment_samples
    )
    batch = Batch(
        0.1 * noise.excitation,
        features.f0_hz,
        features.loudness_db,
        features.asr_features,
        np.tile(np.float32([0, 1]), (batch_size, 3, 13, 1)),
        jnp.zeros(batch_size, jnp.int32),
    )
    step = functools.partial(steps.train_step, networks, optimizers, objective, phase)
    scales = {"pitch": 1.0, "content": 1.0}
    return step, (state, batch, frozen, scales, jax.random.key(1))


def again_and_again(step, arguments):
    """A function that makes the update, from the same state every time."""
    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(*arguments))


def training():
    for phase in steps.PHASES:
        configs = (fast.get_config(), multi.get_config("paper"))
        updates = (again_and_again(*update(config, phase)) for config in configs)
        medians = timing.medians(*updates, repeats=3)
        ours, papers = (seconds / TRAINING_BATCH for seconds in medians)
        print(
            f"{'+'.join(phase.passes):34s} fast {ours:.3f}, the paper's {papers:.2f}:"
            f" {papers / ours:.1f} x cheaper"
        )


def main():
    chosen = sys.argv[1:] or ["synthesis", "conversion", "training"]
    for name in chosen:
        {"synthesis": synthesis, "conversion": conversion, "training": training}[name]()


if __name__ == "__main__":
    main()
