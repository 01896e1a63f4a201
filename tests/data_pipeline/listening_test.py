"""Recordings read in blocks against the same read at once."""

import contextlib

import numpy as np
import pyloudnorm
import pytest
import soundfile

from data_pipeline import listening
from svc_jax import audio_files


def hiss(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (round(seconds * rate), channels)
    return np.clip(rng.normal(0, 0.1, shape), -1, 1).astype(np.float32)


@pytest.fixture
def listen():
    """listening.listen at 16 kHz; closes what it gave when the test is over."""
    with contextlib.ExitStack() as stack:

        def listen_to(path):
            measures, audio = listening.listen(str(path), 16_000)
            stack.enter_context(audio)
            return measures, audio

        yield listen_to


@pytest.fixture
def made():
    """Makes Audio of samples."""
    with contextlib.ExitStack() as stack:

        def make(*parts) -> listening.Audio:
            audio = stack.enter_context(listening.Audio())
            for samples in parts:
                audio.append(samples)
            return audio

        yield make


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(listening, "BLOCK", 1237)
    monkeypatch.setattr(listening, "IN_MEMORY", 10_000)


@pytest.mark.parametrize(
    ("rate", "channels", "ending", "subtype"),
    [
        (16_000, 1, "wav", "PCM_16"),
        (16_000, 2, "wav", "FLOAT"),
        (44_100, 2, "flac", "PCM_24"),
        (48_000, 1, "wav", "PCM_U8"),
        (8_000, 6, "wav", "DOUBLE"),
        (22_050, 1, "ogg", "VORBIS"),
        (48_000, 2, "mp3", "MPEG_LAYER_III"),
        (96_000, 1, "aiff", "PCM_32"),
        (11_025, 3, "caf", "ULAW"),
    ],
)
def test_blocks_give_what_the_whole_file_gives(
    tmp_path, small_blocks, rate, channels, ending, subtype, listen
):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, hiss(0.7, rate, channels), rate, subtype)
    whole = audio_files.read(path, 16_000)
    measures, audio = listen(path)
    assert measures.error is None
    assert (measures.sample_rate, measures.channels) == (rate, channels)
    assert measures.subtype == whole.subtype == subtype
    assert measures.seconds == pytest.approx(whole.source_samples / rate)
    assert not measures.is_truncated
    np.testing.assert_array_equal(audio.read(0, audio.num_samples), whole.audio)


def test_one_sample_is_a_recording(tmp_path, listen):
    soundfile.write(tmp_path / "a.wav", [0.5], 48_000)
    measures, audio = listen(tmp_path / "a.wav")
    assert measures.error is None
    assert audio.num_samples == 1


def test_reading_beyond_the_end_is_silence_and_gain_is_applied(made):
    audio = made(np.array([0.5], np.float32), np.array([-0.25], np.float32))
    audio.gain = 2.0
    np.testing.assert_array_equal(audio.read(1, 4), [-0.5, 0, 0])
    np.testing.assert_array_equal(audio.read(5, 7), [0, 0])
    blocks = list(audio.blocks(2, 3))
    assert [block.tolist() for block in blocks] == [[1.0, -0.5], [0.0]]


def test_the_hash_is_of_the_samples_whatever_file_holds_them(tmp_path, listen):
    samples = np.round(hiss(0.2, 16_000) * 2**15) / 2**15

    def sha256(name, audio, rate=16_000) -> str:
        soundfile.write(tmp_path / name, audio, rate, subtype="PCM_16")
        return listen(tmp_path / name)[0].sha256

    first = sha256("a.wav", samples)
    assert sha256("a.flac", samples) == first
    assert sha256("b.wav", samples[:-1]) != first
    assert sha256("c.wav", samples, 44_100) != first


def test_measures_of_peak_and_offset(tmp_path, listen):
    samples = np.stack([np.full(1000, 0.1), np.full(1000, -0.2)], 1)
    samples[3, 0] = 0.75
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    measures, _ = listen(tmp_path / "a.wav")
    assert measures.peak == 0.75
    assert measures.dc_offset == pytest.approx(-0.2)


@pytest.mark.parametrize("limit", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_clipping_is_counted_in_runs_at_the_peak(tmp_path, limit, subtype, listen):
    rate = 16_000
    voice = 1.3 * limit * np.sin(2 * np.pi * 110 * np.arange(rate) / rate)
    samples = np.clip(voice, -limit, limit)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype=subtype)
    measures, _ = listen(tmp_path / "a.wav")
    assert measures.clipped == pytest.approx((np.abs(voice) >= limit).mean(), rel=0.02)
    soundfile.write(tmp_path / "b.wav", voice / 1.301, rate, subtype=subtype)
    measures, _ = listen(tmp_path / "b.wav")
    assert measures.clipped == 0


def test_runs_do_not_reach_from_channel_to_channel(tmp_path, listen):
    samples = np.zeros((100, 2))
    samples[-2:, 0] = samples[:2, 1] = 0.5
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert listen(tmp_path / "a.wav")[0].clipped == 0


def test_levels_are_rms_below_full_scale(made):
    t = np.arange(16_000) / 16_000
    audio = made((0.5 * np.sin(2 * np.pi * 200 * t)).astype(np.float32))
    found = listening.levels_db(audio, 320, 60)
    assert found.shape == (60,)
    np.testing.assert_allclose(found[:50], 20 * np.log10(0.5 / np.sqrt(2)), atol=0.01)
    np.testing.assert_array_equal(found[50:], -100)


@pytest.mark.parametrize("seconds", [0.45, 3.0, 59.9, 60.3, 150.0])
def test_loudness_is_pyloudnorms_of_the_whole(seconds, made):
    rate = 16_000
    samples = hiss(seconds, rate)[:, 0]
    samples *= np.repeat([1.0, 0.02, 0.3], -(-samples.size // 3))[: samples.size]
    audio = made(samples)
    whole = pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64))
    assert listening.loudness_lufs(audio, rate) == pytest.approx(whole, abs=0.01)


def test_loudness_of_the_very_short_and_of_silence(made):
    audio = made(np.zeros(10_000, np.float32))
    assert listening.loudness_lufs(audio, 16_000) == -np.inf
    audio = made(hiss(0.1, 16_000)[:, 0])
    longer = np.resize(audio.read(0, 1600), 6400).astype(float)
    whole = pyloudnorm.Meter(16_000).integrated_loudness(longer)
    assert listening.loudness_lufs(audio, 16_000) == pytest.approx(whole, abs=0.01)


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_digital_silence_is_found(tmp_path, small_blocks, rate):
    audio = hiss(1.0, rate, channels=2)
    runs = [(0, rate // 10), (rate // 3, rate // 2), (rate - 999, rate)]
    for first, last in runs:
        audio[first:last] = 0
    audio[rate // 5 : rate // 5 + rate // 50] = 0  # too short to be asked for
    audio[rate * 3 // 4, 0] = 0  # and one channel's
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    found = listening.silences(str(tmp_path / "a.wav"), 0.021)
    np.testing.assert_array_equal(found, runs)
    soundfile.write(tmp_path / "b.wav", hiss(1.0, rate), rate)
    assert listening.silences(str(tmp_path / "b.wav"), 0.021).shape == (0, 2)


def test_a_wav_from_a_pipe_is_not_cut_short(tmp_path, listen):
    """Whoever writes to a pipe cannot go back to tell the length."""
    soundfile.write(tmp_path / "a.wav", hiss(0.5, 16_000), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data") + 4
    for told, truncated in ((0xFFFFFFFF, False), (0x7FFFFFFF, False), (20_000, True)):
        content[place : place + 4] = told.to_bytes(4, "little")
        (tmp_path / "a.wav").write_bytes(content)
        measures, audio = listen(tmp_path / "a.wav")
        assert measures.error is None
        assert audio.num_samples == 8000
        assert measures.is_truncated == truncated
