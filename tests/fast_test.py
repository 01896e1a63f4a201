"""configs/fast.py from recordings to a conversion, at both of its sample rates."""

import json

import numpy as np
import pytest
import soundfile

from configs import fast
from data_pipeline import prepare, schema
from svc_jax import bundles, convert, evaluate, export, train
from svc_jax.features import FeatureExtractor
from svc_jax.geometry import FrameGeometry

SMALL = {
    "num_steps": 4,
    "phases.adversarial": 1 / 4,
    "phases.mixup": 1 / 2,
    "batch_size": 8,  # one for each device
    "generator.channels": 12,
    "generator.num_blocks": 2,
    "generator.embedding_size": 6,
    "discriminator.periods": (2, 3),
    "discriminator.period_channels": (4, 4),
    "discriminator.fft_sizes": (512,),
    "discriminator.spectrum_channels": (4, 4),
    "loss.fft_sizes": (512, 128),
    "log_every": 1,
    "eval_every": 4,
    "checkpoint_every": 4,
}


@pytest.fixture(scope="module", params=["16k", "44k"])
def trained(request, tmp_path_factory, recordings, wav2letter_file):
    """A workdir after a run of four steps through all phases, and its sample rate."""
    folder = tmp_path_factory.mktemp(request.param)
    config = fast.get_config(request.param)
    config.lock()
    grid = config.geometry
    segment_samples = grid.asr_hop_length * 10
    dataset = folder / "dataset"
    prepare.prepare(
        recordings,
        dataset,
        geometry=prepare.geometry_of(grid.sample_rate, grid.hop_length),
        f0="yin",
        wav2letter_path=wav2letter_file,
    )
    config.update_from_flattened_dict(
        {
            **SMALL,
            "geometry.segment_samples": segment_samples,
            "data.dir": str(dataset),
        }
    )
    train.train(config, folder / "run")
    return folder / "run", grid.sample_rate


def test_every_term_of_the_objective_was_in_force(trained):
    workdir, _ = trained
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    last = {k: v for line in lines if line["step"] == 4 for k, v in line.items()}
    for term in ("spectral", "content", "adversarial", "matching", "discriminator"):
        assert np.isfinite(last[f"loss/{term}"]), term
    assert "loss/matching" not in lines[0]  # there is no discriminator yet


def test_it_is_exported_and_converts(trained, recordings, start, tmp_path):
    workdir, sample_rate = trained
    code, _, err = start(export, f"--workdir={workdir}", f"--output={tmp_path / 'm'}")
    assert (code, err) == (0, "")
    source = recordings / "alto" / "one.wav"
    for model in (workdir, tmp_path / "m"):
        output = tmp_path / f"{model.name}.wav"
        code, _, err = start(
            convert,
            f"--model={model}",
            "--singer=bass",
            "--sample_rate=model",
            f"--output={output}",
            str(source),
        )
        assert (code, err) == (0, "")
    first, rate = soundfile.read(tmp_path / f"{workdir.name}.wav")
    again, _ = soundfile.read(tmp_path / "m.wav")
    np.testing.assert_array_equal(first, again)
    assert rate == sample_rate
    info = soundfile.info(source)
    assert first.size == round(info.frames * sample_rate / info.samplerate)
    assert np.abs(first).max() > 1e-4


def test_it_is_evaluated(trained, recordings, start, tmp_path):
    workdir, _ = trained
    held = tmp_path / "held"
    for singer in ("alto", "bass"):
        (held / singer).mkdir(parents=True)
        (held / singer / "one.wav").symlink_to(recordings / singer / "one.wav")
    code, out, err = start(
        evaluate,
        f"--model={workdir}",
        f"--sources={held}",
        f"--output={tmp_path / 'report'}",
        "--reconstruct",
    )
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["all", "alto", "bass"]


def voice(sample_rate: int) -> np.ndarray:
    """A second of a vowel, with energy up to 6 kHz."""
    seconds = np.arange(sample_rate) / sample_rate
    partials = (np.sin(2 * np.pi * 220 * k * seconds) / k for k in range(1, 28))
    return np.float32(0.2 * sum(partials))


def test_features_of_any_rate_are_those_of_16_khz(trained):
    workdir, sample_rate = trained
    card = schema.Card.read(workdir)
    assert (card.sample_rate, card.sample_rate // card.hop_length) == (sample_rate, 100)
    model = bundles.load(workdir)
    at_16k = FeatureExtractor(
        FrameGeometry.at(16_000, 160), None, model.extractor.wav2letter
    )
    [found] = model.extractor.extract_recordings(model.frozen, [voice(sample_rate)])
    [expected] = at_16k.extract_recordings(model.frozen, [voice(16_000)])
    assert np.median(found.features.f0_hz) == pytest.approx(220, rel=2e-3)
    assert found.features.asr_features.shape == (50, 12)
    inner = slice(20, -20)  # the ends of a tone are bent by what is beyond them
    np.testing.assert_allclose(
        found.features.f0_hz[inner], expected.features.f0_hz[inner], atol=0.2
    )
    np.testing.assert_allclose(
        found.features.asr_features[inner],
        expected.features.asr_features[inner],
        atol=0.1,
    )
