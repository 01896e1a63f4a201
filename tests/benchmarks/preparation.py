"""Speed and memory of preparation and of the input pipeline on this machine.

  python tests/benchmarks/preparation.py [--minutes 10] [--crepe model-tiny.h5.bz2]

Prepares sung recordings with CREPE tiny and a Wav2Letter of Arm's size, once into an
empty cache and once from a full one, and draws batches from the dataset. Each
preparation is a process of its own, whose start, compilation and peak memory count.
"""

import argparse
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import soundfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE_RATE = 16_000


def write_recordings(folder: pathlib.Path, minutes: float):
    """Songs of the embedded corpus, of several lengths, until there are enough."""
    from data_pipeline import demo_corpus

    number = seconds = 0
    lengths = (3.0, 4.5, 9.0, 30.0)
    song = np.concatenate(
        [
            demo_corpus.render(
                demo_corpus.score(demo_corpus.make_song(7, index)),
                demo_corpus.SINGERS[index % len(demo_corpus.SINGERS)],
            )
            for index in range(6)
        ]
    )
    rng = np.random.default_rng(0)
    while seconds < 60 * minutes:
        length = round(lengths[number % len(lengths)] * SAMPLE_RATE)
        first = rng.integers(0, len(song) - length)
        path = folder / f"singer{number % 3}" / f"{number:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, song[first : first + length], SAMPLE_RATE)
        number, seconds = number + 1, seconds + length / SAMPLE_RATE


def write_long(path: pathlib.Path, minutes: float):
    """One recording of that length, of songs and pauses."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(1)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for _ in range(round(minutes * 3)):  # 20 s each
            hz = np.repeat(rng.uniform(150, 450, 17), SAMPLE_RATE)
            turns = np.cumsum(hz) / SAMPLE_RATE
            song = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 6)) * 0.1
            file.write(np.concatenate([song, np.zeros(3 * SAMPLE_RATE)]))


def write_wav2letter(path: pathlib.Path, small: bool):
    """Weights of a random Wav2Letter: Arm's size, or half its layers' width."""
    import jax

    from svc_jax import builders, weights

    config = {"channels": 250, "wide_channels": 2000, "num_labels": 29}
    if small:
        config.update(channels=128, wide_channels=256)
    init = jax.jit(builders.wav2letter(config).init)
    params = init(jax.random.key(0), np.zeros((1, 20, 39), np.float32))["params"]
    labels = [chr(97 + n) for n in range(29)]
    weights.save_wav2letter(path, jax.device_get(params), {**config, "labels": labels})


def prepare(audio_seconds: float, *arguments) -> str:
    """Prepares; says how long that took, of the processors too, and its memory.

    On a machine that is busy with other things, the processors' time is what counts.
    """
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.prepare", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"preparation ended with {status}")
    child.returncode = 0
    took = time.perf_counter() - started
    busy = usage.ru_utime + usage.ru_stime
    return (
        f"{took:.0f} s, {audio_seconds / took:.1f} x real time;"
        f" {busy:.0f} s of a core, {audio_seconds / busy:.1f} x real time per core;"
        f" {usage.ru_maxrss / 1e6:.2f} GB"
    )


def measure_batches(dataset: pathlib.Path, file_format: str):
    """Segments per second that the input pipeline alone gives."""
    from data_pipeline import grain_pipeline, input_pipeline
    from svc_jax.geometry import FrameGeometry

    # Importing them takes seconds; what is measured is the pipeline.
    importlib.import_module({"tfrecord": "tensorflow"}.get(file_format, "grain"))
    pipeline = {"tfrecord": input_pipeline, "array_record": grain_pipeline}
    started = time.perf_counter()
    batches = pipeline[file_format].train_batches(
        dataset, FrameGeometry(), batch_size=16, seed=0, first_step=400_000
    )
    next(batches)
    ready = time.perf_counter() - started
    for _ in range(10):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 10:
        next(batches)
        count += 16
    rate = count / (time.perf_counter() - started)
    print(
        f"batches from {file_format}: {rate:.0f} segments of 1 s per second; at step"
        f" 400 000 ready after {ready:.1f} s"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--long_minutes", type=float, default=60)
    parser.add_argument("--crepe", help="weights of CREPE tiny")
    parser.add_argument("--f0", default="crepe-tiny")
    parser.add_argument("--f0_hop", type=int, default=160)
    parser.add_argument(
        "--workers", type=int, help="processes; by default prepare's own"
    )
    parser.add_argument("--small", action="store_true", help="a smaller Wav2Letter")
    options = parser.parse_args()
    crepe = [f"--crepe={options.crepe}"] if options.crepe else []
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_wav2letter(folder / "wav2letter.safetensors", options.small)
        common = [
            f"--wav2letter={folder / 'wav2letter.safetensors'}",
            f"--f0={options.f0}",
            f"--f0_hop={options.f0_hop}",
            f"--cache={folder / 'cache'}",
            *crepe,
            *([f"--workers={options.workers}"] if options.workers else []),
        ]
        if options.minutes:
            write_recordings(folder / "in", options.minutes)
            seconds = 60 * options.minutes
            for what in ("nothing", "a full cache"):
                arguments = [f"--input={folder / 'in'}", *common]
                said = prepare(seconds, *arguments, f"--output={folder / what[:3]}")
                print(f"{options.minutes:g} minutes from {what}: {said}", flush=True)
            measure_batches(folder / "not", "tfrecord")
            arguments.append("--file_format=array_record")
            prepare(seconds, *arguments, f"--output={folder / 'arr'}")
            measure_batches(folder / "arr", "array_record")
        if options.long_minutes:
            write_long(folder / "long" / "alto" / "hour.flac", options.long_minutes)
            said = prepare(
                60 * options.long_minutes,
                f"--input={folder / 'long'}",
                *common,
                f"--output={folder / 'hour'}",
            )
            print(f"one file of {options.long_minutes:g} minutes: {said}")


if __name__ == "__main__":
    main()
