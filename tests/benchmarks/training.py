"""Cost of a training step on this machine, and of what surrounds it.

  python tests/benchmarks/training.py [run] [compile] [depth] [torch]

`run` trains configs/multi.py:demo and reads what it says of itself: how long a step
waits for its batch, and how much longer than the others a step is that saves.
`compile` is the first compilation of the paper's step in each phase, for one segment.
`depth` is the WaveNet's forward pass and its gradients, for its first 10 layers and for
all 30.
`torch` is an update of a WaveNet and its discriminator by spectra and judges, in turns
with Parallel WaveGAN's step of the same layers, losses and optimisers in torch eager;
needs `pip install torch`.
"""

import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import fast
import features as timing
import generator
import jax
import numpy as np

from configs import multi
from svc_jax import builders, losses, optimizers, steps
from svc_jax.types import NetworkState

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAVE_EVERY = 10
WARM = 20  # steps that compile and fill caches


def run():
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "svc_jax.train"),
            *("--config=configs/multi.py:demo", f"--workdir={folder}"),
            *("--config.num_steps=220", "--config.log_every=1"),
            *("--config.phases.adversarial=1.0", "--config.phases.mixup=1.0"),
            *(f"--config.checkpoint_every={SAVE_EVERY}", "--config.eval_every=1000"),
        ]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    told = [line for line in told if "time/total" in line and line["step"] > WARM]
    total = sum(line["time/total"] for line in told)
    waited = sum(line["time/input"] for line in told)
    # A save shows in the step that makes it, and writes on during the next ones.
    spans = {"saving": [], "other": []}
    for line in told[:-1]:  # the last one waits for the disk
        since = (line["step"] - 1) % SAVE_EVERY
        spans["saving" if since <= 2 else "other"].append(line["time/total"])
    step = statistics.median(spans["other"])
    extra = 3 * (statistics.mean(spans["saving"]) - statistics.mean(spans["other"]))
    print(f"a step {step:.3f} s, of which input {waited / total:.2%}")
    print(f"a save costs {extra:.3f} s, {extra / step:.2f} steps")


def compilation():
    config = multi.get_config("paper")
    for phase in steps.PHASES:
        step, arguments = fast.update(config, phase, batch_size=1)
        started = time.perf_counter()
        jax.jit(step).lower(*arguments).compile()
        seconds = time.perf_counter() - started
        print(f"{'+'.join(phase.passes):34s} {seconds:.0f} s")


def depth():
    config = multi.get_config("paper").generator
    dilations = config.dilations
    for count in (10, 30):
        config.dilations = dilations[:count]
        network, params, inputs = generator.wavenet(config)

        def power(params, network=network, inputs=inputs):
            return (network.apply({"params": params}, *inputs) ** 2).mean()

        functions = [
            functools.partial(
                lambda f, p: jax.block_until_ready(f(p)), jax.jit(f), params
            )
            for f in (power, jax.grad(power))
        ]
        forward, gradients = timing.medians(*functions, repeats=3)
        print(f"{count} layers: forward {forward:.2f} s, gradients {gradients:.2f} s")


def our_step(wavenet, judge, config, params, inputs, real):
    """An update of both networks, as a function that ends when it is done."""
    tx = builders.run_optimizers(config)
    fft_sizes = tuple(config.loss.fft_sizes)
    weight = config.loss.weights.adversarial

    @jax.jit
    def update(generator, discriminator):
        def of(network):
            return lambda audio: judge.apply({"params": network}, audio)

        fake, pull = jax.vjp(
            lambda p: wavenet.apply({"params": p}, *inputs), generator.params
        )
        grads = jax.grad(lambda p: losses.discriminator_loss(of(p)(real), of(p)(fake)))(
            discriminator.params
        )
        discriminator = optimizers.apply(tx.discriminator, discriminator, grads, 5e-5)
        grads = jax.grad(
            lambda fake: (
                losses.spectral_loss(fake, real, fft_sizes)
                + weight * losses.adversarial_loss(of(discriminator.params)(fake))
            )
        )(fake)
        (grads,) = pull(grads)
        return optimizers.apply(tx.generator, generator, grads, 1e-4), discriminator

    states = [
        NetworkState(p, optimizer.init(p))
        for p, optimizer in zip(params, (tx.generator, tx.discriminator), strict=True)
    ]

    def step():
        states[:] = jax.block_until_ready(update(*states))

    return step


def torch_step(config, params, inputs, real):
    """Parallel WaveGAN's step of the same layers, losses and optimisers."""
    import torch
    from torch.nn import functional

    def trainable(params):
        layers = {}
        for name, (kernel, bias) in generator.torch_weights(params).items():
            scale = kernel.norm(dim=(1, 2), keepdim=True)
            layers[name] = [
                None if x is None else torch.nn.Parameter(x)
                for x in (kernel, scale, bias)
            ]
        return layers

    def weights_of(layers):
        return {
            name: (torch._weight_norm(kernel, scale, 0), bias)
            for name, (kernel, scale, bias) in layers.items()
        }

    section = config.generator
    run = generator.torch_wavenet(tuple(section.dilations), section.kernel_size)
    layers, judges = map(trainable, params)
    z, condition, voice = map(torch.from_numpy, inputs)
    z, condition = (x.transpose(1, 2).contiguous() for x in (z, condition))
    real = torch.from_numpy(real)
    dilations = config.discriminator.dilations

    def judge(convs, audio):
        x = audio[:, None]
        for index, dilation in enumerate(dilations[:-1]):
            x = functional.conv1d(
                x, *convs[f"layer{index}"], padding=dilation, dilation=dilation
            )
            x = functional.leaky_relu(x, 0.2)
        return functional.conv1d(x, *convs["output"], padding=1)

    def spectra(audio, n_fft):
        found = torch.stft(
            audio,
            n_fft,
            n_fft // 4,
            window=torch.hann_window(n_fft),
            return_complex=True,
        )
        return torch.sqrt(torch.clamp(found.real**2 + found.imag**2, min=1e-7))

    def spectral_loss(fake):
        total = 0.0
        for n_fft in config.loss.fft_sizes:
            mine, other = spectra(fake, n_fft), spectra(real, n_fft)
            total += torch.norm(other - mine) / torch.norm(other)
            total += functional.l1_loss(torch.log(mine), torch.log(other))
        return total / len(config.loss.fft_sizes)

    def radam(layers, rate):
        flat = [x for layer in layers.values() for x in layer if x is not None]
        return flat, torch.optim.RAdam(flat, lr=rate, eps=config.optimizer.epsilon)

    ours, generator_tx = radam(layers, 1e-4)
    theirs, discriminator_tx = radam(judges, 5e-5)

    def step():
        fake = run(weights_of(layers), z, condition, voice)
        convs = weights_of(judges)
        loss = torch.mean((judge(convs, real) - 1) ** 2) + torch.mean(
            judge(convs, fake.detach()) ** 2
        )
        discriminator_tx.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        discriminator_tx.step()
        scores = judge(weights_of(judges), fake)
        loss = spectral_loss(fake) + config.loss.weights.adversarial * torch.mean(
            (scores - 1) ** 2
        )
        generator_tx.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ours, 10.0)
        generator_tx.step()

    return step


def against_torch():
    config = multi.get_config("paper")
    wavenet, params, inputs = generator.wavenet(config.generator)
    judge = builders.discriminator(config)
    rng = np.random.default_rng(1)
    real = 0.1 * rng.standard_normal((1, generator.NUM_SAMPLES), np.float32)
    judge_params = jax.jit(judge.init)(jax.random.key(0), real)["params"]
    params = params, jax.device_get(judge_params)
    ours = our_step(wavenet, judge, config, params, inputs, real)
    theirs = torch_step(config, params, inputs, real)
    mine, other = timing.medians(ours, theirs)
    print(f"an update: jax {mine:.2f} s, torch {other:.2f} s, ratio {mine / other:.2f}")


def main():
    parts = {"run": run, "compile": compilation, "depth": depth, "torch": against_torch}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
