"""Recordings in and out: odd but good ones are taken, bad ones refused in one line."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from svc_jax import audio_files
from svc_jax.errors import UserError


def tone(num_samples: int, sample_rate: int, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(num_samples) / sample_rate + 0.5)


def refusal(function, *arguments) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading what is odd but good.


@pytest.mark.parametrize(
    ("name", "subtype", "error"),
    [
        ("a.wav", "PCM_U8", 2**-7),
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 1e-7),
        ("a.wav", "FLOAT", 1e-7),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.flac", "PCM_16", 2**-15),
        ("a.flac", "PCM_24", 2**-23),
        ("a.aiff", "PCM_24", 2**-23),
        ("a.caf", "FLOAT", 1e-7),
        ("a.ogg", "VORBIS", 0.02),
        ("a.mp3", "MPEG_LAYER_III", 0.02),
    ],
)
def test_every_sample_format_is_read(tmp_path, name, subtype, error):
    audio = tone(8000, 16_000)
    soundfile.write(tmp_path / name, audio, 16_000, subtype=subtype)
    recording = audio_files.read(tmp_path / name, 16_000)
    assert recording.audio.dtype == np.float32
    assert recording.audio.shape == (recording.source_samples,) == (8000,)
    # Lossy formats are worst at the ends.
    middle = slice(1000, -1000) if error > 0.01 else slice(None)
    np.testing.assert_allclose(recording.audio[middle], audio[middle], atol=error)
    assert (recording.subtype, recording.source_rate) == (subtype, 16_000)
    assert recording.changes == ()


@pytest.mark.parametrize("source_rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_another_rate_is_resampled_and_said(tmp_path, source_rate):
    soundfile.write(tmp_path / "a.wav", tone(source_rate, source_rate), source_rate)
    recording = audio_files.read(tmp_path / "a.wav", 16_000)
    assert recording.audio.shape == (16_000,)
    inside = slice(500, -500)  # away from the edges of the tone
    expected = tone(16_000, 16_000)[inside]
    np.testing.assert_allclose(recording.audio[inside], expected, atol=2e-4)
    assert recording.sample_rate == 16_000
    assert recording.source_rate == source_rate
    assert recording.changes == (f"resampled from {source_rate} to 16000 Hz",)


def test_channels_are_averaged_and_it_is_said(tmp_path):
    channels = np.stack([tone(400, 16_000, hz) for hz in (200, 300, 500)], axis=1)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="DOUBLE")
    recording = audio_files.read(tmp_path / "a.wav", 16_000)
    np.testing.assert_allclose(recording.audio, channels.mean(axis=1), atol=1e-7)
    assert recording.source_samples == 400
    assert recording.changes == ("downmixed from 3 channels",)


def test_all_that_is_done_to_a_recording_is_said_in_order(tmp_path):
    channels = np.stack([tone(4800, 48_000)] * 2, axis=1)
    soundfile.write(tmp_path / "a.flac", channels, 48_000)
    assert audio_files.read(tmp_path / "a.flac", 16_000).changes == (
        "downmixed from 2 channels",
        "resampled from 48000 to 16000 Hz",
    )


@given(
    num_samples=st.integers(1, 3000),
    source_rate=st.sampled_from([8000, 11_025, 22_050, 44_100, 48_000, 192_000]),
)
def test_resampling_keeps_the_duration(num_samples, source_rate):
    audio = np.ones(num_samples, np.float32)
    result = audio_files.resample(audio, source_rate, 16_000)
    assert result.shape == (max(1, round(num_samples * 16_000 / source_rate)),)
    assert np.isfinite(result).all()


@pytest.mark.parametrize("source_rate", [8000, 16_000, 44_100, 192_000])
def test_a_single_sample_is_a_recording(tmp_path, source_rate):
    soundfile.write(tmp_path / "a.wav", [0.5], source_rate)
    recording = audio_files.read(tmp_path / "a.wav", 16_000)
    assert recording.audio.shape == (max(1, 16_000 // source_rate),)


# Refusing what is bad.


def test_missing_file_is_refused(tmp_path):
    path = tmp_path / "song.wav"
    line = f"{path}: no such file; check the path."
    assert refusal(audio_files.read, path, 16_000) == line
    assert refusal(audio_files.read, tmp_path, 16_000).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.wav", b"", "is empty; record it again"),
        ("a.wav", b"these are words, not samples", "not readable as audio"),
        ("a.mp3", b"ID3" + bytes(200), "not readable as audio"),
        ("a.flac", b"fLaC\x00\x00\x00\x22", "not readable as audio"),
        ("a.raw", bytes(range(100)), "not readable as audio"),
    ],
)
def test_what_is_not_audio_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    line = refusal(audio_files.read, path, 16_000)
    assert line.startswith(f"{path}: {said}")
    assert "; " in line  # the remedy


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros((0, 1)), "holds no samples; record it again."),
        (np.zeros((50, 2)), "every sample is zero"),
        (np.stack([np.full(50, 0.1), np.full(50, -0.1)], 1), "its 2 channels cancel"),
        (np.array([[0.1, np.nan], [0.1, np.inf]]), "2 samples are NaN or infinite"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(tmp_path, samples, said):
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    assert refusal(audio_files.read, path, 16_000).startswith(f"{path}: {said}")


# Finding.


def test_recordings_are_found_by_their_extensions_wherever_they_lie(tmp_path):
    wanted = ["a.wav", "B.WAV", "album/c.flac", "album/deep/d.mp3", "e.ogg", "f.opus"]
    others = ["notes.txt", "wav", ".g.wav", ".trash/h.wav", "album/.cache/i.wav"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    found = audio_files.find(tmp_path)
    assert found == sorted(tmp_path / name for name in wanted)


def test_recordings_are_found_below_a_hidden_folder_that_is_named(tmp_path):
    path = tmp_path / ".work" / "a.wav"
    path.parent.mkdir()
    path.touch()
    assert audio_files.find(path.parent) == [path]


# Writing.


@pytest.mark.parametrize(
    ("name", "asked", "written"),
    [
        ("a.wav", None, ("WAV", "PCM_16")),
        ("a.wav", "PCM_24", ("WAV", "PCM_24")),
        ("a.wav", "FLOAT", ("WAV", "FLOAT")),
        ("a.wav", "DOUBLE", ("WAV", "DOUBLE")),
        ("a.flac", "DOUBLE", ("FLAC", "PCM_16")),
        ("a.flac", "PCM_24", ("FLAC", "PCM_24")),
        ("a.ogg", "PCM_24", ("OGG", "VORBIS")),
        ("a.opus", None, ("OGG", "OPUS")),
        ("a.mp3", "PCM_16", ("MP3", "MPEG_LAYER_III")),
        ("a.aif", "PCM_24", ("AIFF", "PCM_24")),
        # A wav can hold these, with more samples than it was given.
        ("a.wav", "MPEG_LAYER_III", ("WAV", "PCM_16")),
        ("a.wav", "IMA_ADPCM", ("WAV", "PCM_16")),
        ("a.wav", "VORBIS", ("WAV", "PCM_16")),
    ],
)
def test_the_sample_format_is_kept_where_it_can_be(tmp_path, name, asked, written):
    audio = tone(1601, 16_000).astype(np.float32)
    path = tmp_path / "new" / name
    audio_files.write(path, audio, 16_000, asked)
    info = soundfile.info(path)
    assert (info.format, info.subtype) == written
    assert (info.frames, info.channels, info.samplerate) == (1601, 1, 16_000)
    if written[1] in ("PCM_16", "PCM_24", "FLOAT", "DOUBLE"):
        np.testing.assert_allclose(soundfile.read(path)[0], audio, atol=2**-15)
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_unknown_format_is_refused(tmp_path):
    line = refusal(audio_files.write, tmp_path / "a.aac", tone(10, 16_000), 16_000)
    assert line == f"{tmp_path / 'a.aac'}: no audio format is named AAC; write .wav."
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    for path in (tmp_path / "file" / "a.wav", tmp_path / "folder.wav"):
        line = refusal(audio_files.write, path, tone(10, 16_000), 16_000)
        assert line.startswith(f"{path}: cannot be written (")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.wav"]


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.wav"
    audio_files.write(path, tone(100, 16_000), 16_000)
    before = path.read_bytes()

    def half(blocks):
        yield blocks[0][:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audio_files.write_blocks(path, half([tone(50, 16_000)]), 16_000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_no_wav_can_hold_becomes_an_rf64(tmp_path):
    for num_samples, expected in ((50, "WAV"), (600_000_000, "RF64")):
        blocks = [tone(20, 16_000), tone(30, 16_000)]
        path = tmp_path / "a.wav"
        audio_files.write_blocks(path, blocks, 16_000, "DOUBLE", num_samples)
        info = soundfile.info(path)
        assert (info.format, info.subtype, info.frames) == (expected, "DOUBLE", 50)
    assert audio_files.read(path, 16_000).audio.shape == (50,)
