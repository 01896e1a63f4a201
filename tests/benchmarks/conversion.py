"""Speed and memory of conversion, file to file, on this machine.

  python tests/benchmarks/conversion.py --config configs/fast.py [--seconds 1,60,3600]
  python tests/benchmarks/conversion.py --model models/choir

A config gets a model of its own, of random weights but for CREPE tiny's, with the
Wav2Letter of configs/asr.py. Each conversion is a process of its own, whose start,
compilation and peak memory count. What a second of audio costs beyond that, is the
difference to the length before.
"""

import argparse
import functools
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time

import fast
import jax
import numpy as np
import soundfile

from data_pipeline import schema
from svc_jax import bundles, steps, weight_files, weights
from svc_jax.features import FrozenParams

SAMPLE_RATE = 16_000


def write_song(path: pathlib.Path, seconds: float):
    """A second on each note, every tenth a pause."""
    rng = np.random.default_rng(1)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for second in range(round(seconds)):
            turns = rng.uniform(150, 450) * np.arange(SAMPLE_RATE) / SAMPLE_RATE
            note = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 6)) * 0.1
            file.write(note * (second % 10 != 9))


def write_model(folder: pathlib.Path, named: str):
    """A model of a config, FILE.py[:variant], that was never trained."""
    file, *variant = named.split(":")
    config = runpy.run_path(file)["get_config"](*variant)
    networks, frozen = fast.build(config)
    generator, extractor = networks.generator, networks.extractor
    # A random CREPE hears no pitch, and without any there is nothing to convert.
    frozen = FrozenParams(weights.crepe("tiny").params, frozen.wav2letter)
    init = functools.partial(steps.init_generator, generator, extractor)
    params = jax.jit(init)(jax.random.key(0))
    geometry = extractor.geometry
    card = schema.Card(
        tuple(
            schema.Singer(str(number), 220.0, 110.0, 440.0, 1.0)
            for number in range(fast.NUM_SINGERS)
        ),
        geometry.sample_rate,
        geometry.hop_length,
        geometry.asr_hop_length,
        {"network": "crepe-tiny", "sha256": "", "hop_length": extractor.f0_hop},
        {
            "network": "wav2letter",
            "sha256": "",
            "layer": extractor.asr_layer,
            "size": extractor.asr_size,
        },
    )
    source = folder / "source"
    (source / schema.FROZEN).mkdir(parents=True)
    content = fast.small_wav2letter()
    content["labels"] = list(map(str, range(content["num_labels"])))
    for kind, network in ("crepe", {"capacity": "tiny"}), ("wav2letter", content):
        weight_files.save_safetensors(
            source / schema.FROZEN / f"{kind}.safetensors",
            jax.device_get(getattr(frozen, kind)),
            network,
            kind,
        )
    model = bundles.Model(generator, params, extractor, frozen, card, config)
    bundles.save(model, source, folder / "model")
    return folder / "model"


def convert(model, source: pathlib.Path, output: pathlib.Path):
    """(seconds, peak memory in MiB) of a conversion to the model's first singer."""
    singers = json.loads((pathlib.Path(model) / "singers.json").read_text())["singers"]
    command = [sys.executable, "-m", "svc_jax.convert", f"--model={model}"]
    command += [f"--singer={singers[0]['name']}", f"--output={output}", str(source)]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{source}: the conversion failed.")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--model")
    chosen.add_argument("--config")
    parser.add_argument("--seconds", default="1,60,3600")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = arguments.model or write_model(folder, arguments.config)
        before = None
        for seconds in map(float, arguments.seconds.split(",")):
            source = folder / "song.wav"
            write_song(source, seconds)
            took, memory = convert(model, source, folder / "out")
            said = f"{seconds:6.0f} s: {took:7.1f} s, {memory:5.0f} MiB"
            if before:
                each = (took - before[1]) / (seconds - before[0])
                said += f", {each:.4f} s for each further second"
            before = seconds, took
            print(said, flush=True)


if __name__ == "__main__":
    main()
