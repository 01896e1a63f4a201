"""What every test shares: eight CPU devices, strict JAX, a compilation cache, test data.

Of the test data, the small kind is made here: recordings of two singers, a recogniser
that knows nothing, the dataset they make, and a run that was never trained. They are
for reading: copy what a test changes.
"""

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable

import ml_collections
import numpy as np
import pytest


def _compilation_cache() -> str:
    """Returns the folder, outside the checkout, that keeps compiled programs."""
    named = os.environ.get("SVC_JAX_TEST_CACHE")
    if named:
        return named
    if sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Caches"
    else:
        base = pathlib.Path(
            os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        )
    return str(base / "svc_jax" / "test_compilation")


# In the environment, before JAX is imported, so that the programs which the tests start
# have them too. The suite is for the CPU; JAX_PLATFORMS=cuda tries it elsewhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compilation_cache())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax

# Only in this process: a mesh to test on, and no silent broadcast over a forgotten axis.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real recordings, weights and reference arrays, or a skip."""
    named = os.environ.get("SVC_JAX_TEST_DATA")
    if not named:
        pytest.skip("needs recordings and weights: SVC_JAX_TEST_DATA names no folder")
    folder = pathlib.Path(named).resolve()
    if not folder.is_dir():
        pytest.fail(f"SVC_JAX_TEST_DATA={named} is not a folder")
    return folder


def _sing(path: pathlib.Path, singer: str, notes) -> None:
    """Writes a rendering of notes (semitones, seconds, onset, vowel), mono 16 bit."""
    import soundfile

    from data_pipeline import demo_corpus

    (voice,) = (s for s in demo_corpus.SINGERS if s.name == singer)
    song = demo_corpus.Song(path.stem, tuple(demo_corpus.Note(*note) for note in notes))
    audio = demo_corpus.render(demo_corpus.score(song), voice)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Recordings do not end on a grid.
    soundfile.write(path, audio[:-123], demo_corpus.SAMPLE_RATE, subtype="PCM_16")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> pathlib.Path:
    """Songs of 1.5 s: three of alto, two of bass; and one of bass of 10.9 s."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, steps in {"one": (0, 4), "two": (5, 2), "three": (-3, 7)}.items():
        rest, *notes = (0, 0.2), (steps[0], 0.7, "M", "AA"), (steps[1], 0.6, "S", "IY")
        _sing(folder / "alto" / f"{name}.wav", "alto", [rest, *notes])
        if name != "three":
            _sing(folder / "bass" / f"{name}.wav", "bass", [rest, *notes])
    long = [(step, 0.9, "L", "UW") for step in (0, 2, 4, 5, 7, 5, 4, 2, 0, -3, -5, 0)]
    _sing(folder / "bass" / "album" / "long.wav", "bass", [(0, 0.1), *long])
    return folder


@pytest.fixture(scope="session")
def wav2letter_file(tmp_path_factory) -> pathlib.Path:
    """Weights of a tiny random Wav2Letter."""
    from svc_jax import builders, weights

    config = {
        "channels": 8,
        "wide_channels": 12,
        "num_labels": 5,
        "kernels": (6, 3),
        "wide_kernel": 4,
    }
    init = jax.jit(builders.wav2letter(config).init)
    params = init(jax.random.key(7), np.zeros((1, 20, 39), np.float32))["params"]
    path = tmp_path_factory.mktemp("wav2letter") / "wav2letter.safetensors"
    labels = ["a", "b", "c", "d", "@"]
    weights.save_wav2letter(path, jax.device_get(params), {**config, "labels": labels})
    return path


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, recordings, wav2letter_file) -> pathlib.Path:
    """The recordings as a dataset, f0 by YIN; each singer has one for validation."""
    from data_pipeline import prepare

    folder = tmp_path_factory.mktemp("datasets") / "choir"
    refused = prepare.prepare(
        recordings, folder, f0="yin", wav2letter_path=wav2letter_file
    )
    assert not refused
    return folder


@pytest.fixture(scope="session")
def tiny_config(dataset) -> Callable[..., ml_collections.ConfigDict]:
    """Returns configs/multi.py, locked, so small that train.train takes seconds.

    Four steps visit its three phases. Keys to change are given flat: **{"loss.x": 1}.
    """
    from configs import multi

    def make(**changes) -> ml_collections.ConfigDict:
        config = multi.get_config("demo")
        config.lock()
        config.data.embedded = False
        config.data.dir = str(dataset)
        small = {
            "num_steps": 4,
            "phases.adversarial": 1 / 4,
            "phases.mixup": 1 / 2,
            "batch_size": 8,  # one for each device
            "geometry.segment_samples": 3200,
            "generator.embedding_size": 6,
            "generator.channels": 4,
            "generator.gate_channels": 8,
            "generator.skip_channels": 4,
            "generator.dilations": (1, 2, 4),
            "generator.context_channels": 4,
            "generator.context_gate_channels": 8,
            "generator.loudness_dilations": (1, 2),
            "generator.asr_dilations": (1,),
            "generator.sine_dilations": (1, 2),
            "discriminator.channels": 4,
            "discriminator.dilations": (1, 2, 1),
            "loss.fft_sizes": (512, 128),
            "log_every": 1,
            "eval_every": 2,
            "checkpoint_every": 2,
        }
        config.update_from_flattened_dict({**small, **changes})
        return config

    return make


@pytest.fixture(scope="session")
def model_workdir(tmp_path_factory, tiny_config) -> pathlib.Path:
    """The workdir of a run at its second step, its parameters random."""
    from svc_jax import builders, checkpoints, runs, steps

    workdir = tmp_path_factory.mktemp("runs") / "choir"
    config = tiny_config()
    checkpoints.claim_workdir(workdir, config)
    _, card = runs.claim_dataset(config, workdir)
    extractor, _ = runs.load_frozen(config, card, workdir)
    networks = builders.networks(config, len(card.singers), extractor)
    optimizers = builders.run_optimizers(config)
    init = jax.jit(functools.partial(steps.init_state, networks, optimizers))
    state = init(jax.random.key(1))
    # What converts is the running mean, not the newest parameters.
    state = state.replace(
        step=state.step + 2, ema_params=init(jax.random.key(2)).ema_params
    )
    with checkpoints.manager(workdir, keep=None) as manager:
        checkpoints.save(manager, 2, state)
    return workdir


@pytest.fixture(scope="session")
def model_of(model_workdir) -> Callable:
    """Returns a small model by the name of its generator, for the same features."""
    from svc_jax import builders, bundles

    small = {"channels": 8, "num_blocks": 7, "embedding_size": 6}
    wavenet = bundles.load(model_workdir)
    config = ml_collections.ConfigDict(wavenet.config.to_dict())
    config.generator = {"name": "source_filter", **small}
    source_filter = dataclasses.replace(
        wavenet, generator=builders.generator(config, 2), config=config
    )
    models = {"wavenet": wavenet, "source_filter": bundles.untrained(source_filter)}
    return models.__getitem__


@pytest.fixture
def start(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Starts an entry point as a shell does, in this process.

    Returns:
      Function of a module and its arguments; returns exit code, stdout and stderr.
    """
    from absl import app, flags

    # absl's own refuses to run twice in a process; this is what it amounts to.
    def run_app(main, flags_parser):
        sys.exit(main(flags_parser(sys.argv)))

    monkeypatch.setattr(app, "run", run_app)

    def start_module(module, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        others = set(flags.FLAGS)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stopped:
                module.run()
        finally:
            for name in set(flags.FLAGS) - others:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
        return (stopped.value.code or 0, *capsys.readouterr())

    return start_module
