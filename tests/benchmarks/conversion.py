"""Speed and memory of conversion, file to file, on this machine.

  python tests/benchmarks/conversion.py --model models/choir [--seconds 1,60,3600]

Each conversion is a process of its own, whose start, compilation and peak memory count.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import soundfile

SAMPLE_RATE = 16_000


def write_song(path: pathlib.Path, seconds: float):
    """A second on each note, every tenth a pause."""
    rng = np.random.default_rng(1)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for second in range(round(seconds)):
            turns = rng.uniform(150, 450) * np.arange(SAMPLE_RATE) / SAMPLE_RATE
            note = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 6)) * 0.1
            file.write(note * (second % 10 != 9))


def convert(model: str, source: pathlib.Path, output: pathlib.Path):
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
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", default="1,60,3600")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seconds in map(float, arguments.seconds.split(",")):
            source = pathlib.Path(folder, "song.wav")
            write_song(source, seconds)
            took, memory = convert(arguments.model, source, pathlib.Path(folder, "out"))
            print(f"{seconds:6.0f} s: {took:7.1f} s, {memory:5.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
