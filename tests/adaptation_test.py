"""What is found of a new voice, where the truth is known: the model sang it itself."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from svc_jax import adaptation, parity, synthesis
from svc_jax.adaptation import Clips
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry
from svc_jax.types import Features

GEOMETRY = FrameGeometry(segment_samples=3200)
NUM_CLIPS = 10
STEPS = {"MIXTURE": 40, "VOICE": 60, "FINETUNE": 20}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    for name, num_steps in STEPS.items():
        stage = dataclasses.replace(getattr(adaptation, name), num_steps=num_steps)
        monkeypatch.setattr(adaptation, name, stage)


# A draw of each in which voices differ so much that a few steps find their way.
DRAWS = {"wavenet": 5, "source_filter": 4}


@pytest.fixture(scope="module", params=DRAWS)
def model(request, model_of):
    """A model whose voices differ, which fresh parameters are not made for."""
    model = model_of(request.param)
    rng = np.random.default_rng(DRAWS[request.param])

    def shaken(x):
        return np.asarray(x + 0.2 * rng.standard_normal(x.shape), np.float32)

    return dataclasses.replace(model, params=jax.tree.map(shaken, model.params))


def sung(model, voice) -> Clips:
    """A song of the model's in a voice [1, E]."""
    features, _, noise = parity.inputs(model, 10 * NUM_CLIPS)
    audio = parity.singing(model)(features, voice, noise)
    song = jax.tree.map(lambda x: np.asarray(x)[0], (audio, features))
    return adaptation.cut([song], GEOMETRY)


@pytest.mark.parametrize(("index", "name"), [(0, "alto"), (1, "bass")])
def test_a_known_singer_is_found_in_the_mixture(model, index, name):
    voice, _ = synthesis.voice_of(model, {name: 1.0})
    adapted = adaptation.adapt(model, sung(model, voice))
    assert adapted.singers.argmin() == index
    assert adapted.weights[index] > 0.8
    assert adapted.weights.sum() == pytest.approx(1, abs=1e-5)
    assert adapted.mixture < adapted.singers[1 - index]


def test_an_unknown_voice_comes_nearer_and_at_last_the_generator_moves(model):
    voice = np.float32([[3.0, -2.0, 4.0, -4.0, 2.0, 1.0]])
    clips = sung(model, voice)
    adapted = adaptation.adapt(model, clips)
    assert adapted.adapted < adapted.mixture
    assert adapted.adapted < 0.9 * adapted.singers.min()
    jax.tree.map(np.testing.assert_array_equal, adapted.params, model.params)
    # A run is a function of its seed, so that this goes on from there.
    tuned = adaptation.adapt(model, clips, finetune=True)
    assert tuned.mixture == adapted.mixture
    assert tuned.adapted < adapted.adapted
    before, after = (traverse_util.flatten_dict(x.params) for x in (adapted, tuned))
    assert any((before[name] != after[name]).any() for name in before)
    known = ("singers", "embedding")
    # Nothing pulls at the known voices; a running mean of equals rounds.
    np.testing.assert_allclose(before[known], after[known], rtol=1e-5)


def test_a_singer_is_added_beside_the_others(model):
    singer = dataclasses.replace(model.card.singers[0], name="me", mean_f0_hz=300.0)
    voice = np.arange(6, dtype=np.float32)
    grown = adaptation.with_singer(model, singer, model.params, voice)
    found, mean_hz = synthesis.voice_of(grown, {"me": 1.0})
    np.testing.assert_array_equal(found, voice[None])
    assert mean_hz == 300.0
    assert [s.name for s in model.card.singers] == ["alto", "bass"]
    features, _, noise = parity.inputs(model, 10)
    for name in ("alto", "bass"):
        before, after = (
            parity.singing(m)(features, synthesis.voice_of(m, {name: 1.0})[0], noise)
            for m in (model, grown)
        )
        np.testing.assert_array_equal(before, after)


# Clips.


def recording(num_asr_frames: int, f0_hz: float):
    """Audio that counts its samples, and features that count their frames."""
    frames, samples = 5 * num_asr_frames, 320 * num_asr_frames
    content = np.arange(num_asr_frames, dtype=np.float32)[:, None]
    count = np.arange(frames, dtype=np.float32)
    features = Features(np.full(frames, f0_hz, np.float32), count, content)
    return np.arange(samples, dtype=np.float32), features


def test_clips_are_cut_on_all_grids_across_recordings():
    heard = [recording(25, 100.0), recording(10, 0.0), recording(18, 200.0)]
    clips = adaptation.cut(heard, GEOMETRY)
    # 53 ASR frames are five clips and a rest; 10 from the 30th on have no voice but in
    # its second half.
    assert clips.audio.shape == (5, 3200)
    assert clips.features.f0_hz.shape == (5, 50)
    assert clips.features.asr_features.shape == (5, 10, 1)
    for clip in clips.audio[0], clips.audio[1]:
        assert (np.diff(clip) == 1).all()
    np.testing.assert_array_equal(clips.features.loudness_db[1], np.arange(50, 100))
    silent = adaptation.cut([recording(40, 100.0), recording(20, 0.0)], GEOMETRY)
    assert len(silent) == 4


def test_too_little_voice_is_refused():
    with pytest.raises(UserError, match=r"^--input holds 0.4 s of voice; 0.6 s are"):
        adaptation.cut([recording(20, 100.0), recording(90, 0.0)], GEOMETRY)


@pytest.mark.parametrize("count", [3, 4, 5, 7, 30, 160, 1000])
def test_some_of_all_is_held_out(count):
    audio = np.arange(count)[:, None]
    learnt, held_out = adaptation.hold_out(Clips(audio, Features(audio, audio, audio)))
    assert 1 <= len(held_out) <= adaptation.MAX_HELD_OUT
    assert len(held_out) <= -(-count // 5)
    together = np.sort(np.concatenate([learnt.audio, held_out.audio])[:, 0])
    np.testing.assert_array_equal(together, np.arange(count))


def test_a_singer_is_described_by_voiced_frames():
    heard = [recording(25, 100.0), recording(10, 0.0), recording(25, 200.0)]
    singer = adaptation.describe("me", heard, GEOMETRY)
    assert (singer.name, singer.mean_f0_hz) == ("me", 150.0)
    assert (singer.low_f0_hz, singer.high_f0_hz) == (100.0, 200.0)
    assert singer.minutes == pytest.approx(60 * 0.02 / 60)
