import csv
import dataclasses
import json

import numpy as np
import pytest
import soundfile

from data_pipeline import demo_corpus
from data_pipeline.demo_corpus import SAMPLE_RATE, SINGERS
from svc_jax import errors

BY_NAME = {singer.name: singer for singer in SINGERS}
ALTO, BASS, TENOR = BY_NAME["alto"], BY_NAME["bass"], BY_NAME["tenor"]


def vowel_score(vowel: str, seconds: float = 1.2) -> demo_corpus.Score:
    note = demo_corpus.Note(0, seconds, vowel=vowel)
    return demo_corpus.score(demo_corpus.Song("vowel", (note,)))


def sing_vowel(vowel, singer, hz, **changes) -> np.ndarray:
    """The steady middle of a vowel: half a second at a constant pitch."""
    score = vowel_score(vowel)
    f0_hz = np.full(len(score.voiced), float(hz))
    audio = demo_corpus.render(score, dataclasses.replace(singer, **changes), f0_hz)
    middle = len(audio) // 2
    return audio[middle - SAMPLE_RATE // 4 : middle + SAMPLE_RATE // 4]


def power_spectrum(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz and power, with side lobes below -90 dB."""
    power = np.abs(np.fft.rfft(audio * np.blackman(len(audio)) ** 2)) ** 2
    return np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE), power


def pitch_hz(audio: np.ndarray, near_hz: float) -> float:
    """Pitch by autocorrelation: the parabola's top at the 20th period."""

    # Of a windowed signal, divided by the window's own: else the taper shifts the top.
    def autocorrelation(x):
        return np.fft.irfft(np.abs(np.fft.rfft(x, 4 * len(x))) ** 2)[: len(x)]

    window = np.hanning(len(audio))
    curve = autocorrelation(audio * window) / autocorrelation(window)
    periods = 20
    lag = SAMPLE_RATE * periods / near_hz
    low, high = int(lag * 0.985), int(lag * 1.015) + 1
    top = low + int(np.argmax(curve[low:high]))
    assert low < top < high - 1
    left, centre, right = curve[top - 1 : top + 2]
    top += (left - right) / (left - 2 * centre + right) / 2
    return SAMPLE_RATE * periods / top


def rms_db(audio: np.ndarray) -> np.ndarray:
    frames = audio.reshape(-1, 320)
    return 10 * np.log10(np.mean(frames.astype(float) ** 2, axis=1) + 1e-8)


@pytest.fixture(scope="module")
def held_out() -> demo_corpus.Score:
    return demo_corpus.score(demo_corpus.held_out_songs(0)[0])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    return demo_corpus.write_corpus(folder, minutes=0.5, singers=(ALTO, BASS))


def test_everything_follows_from_the_seed(held_out):
    assert demo_corpus.make_song(3, 5) == demo_corpus.make_song(3, 5)
    assert demo_corpus.make_song(3, 5) != demo_corpus.make_song(4, 5)
    audio = demo_corpus.render(held_out, ALTO, seed=1)
    np.testing.assert_array_equal(audio, demo_corpus.render(held_out, ALTO, seed=1))
    assert np.any(audio != demo_corpus.render(held_out, ALTO, seed=2))


@pytest.mark.parametrize("seed", range(50))
def test_songs_contain_every_phone_and_last_8_to_12_seconds(seed):
    song = demo_corpus.make_song(seed, 3)
    assert set(song.phones) == set(demo_corpus.PHONES)
    assert 8 <= song.seconds <= 12
    assert any(not note.vowel for note in song.notes[1:-1])  # rests inside
    assert len(song.text.split()) == sum(bool(note.vowel) for note in song.notes)


def test_score_times_its_phones(held_out):
    song = demo_corpus.held_out_songs(0)[0]
    assert tuple(label for label, _, _ in held_out.phones) == song.phones
    ends = [end for _, _, end in held_out.phones]
    starts = [start for _, start, _ in held_out.phones]
    assert all(s < e for s, e in zip(starts, ends, strict=True))
    assert all(e <= s for e, s in zip(ends[:-1], starts[1:], strict=True))
    for label, start, end in held_out.phones:
        middle = round((start + end) / 2 * demo_corpus.FRAME_RATE)
        is_voiced = label not in {"S", "SH", "F", "T", "K", "P"}
        assert held_out.voiced[middle] == is_voiced
        assert (held_out.voice[middle] > 0) == is_voiced
    assert not np.any(held_out.voice[~held_out.voiced])


@pytest.mark.parametrize("vowel", ["AA", "IY", "UW"])
@pytest.mark.parametrize("hz", [98.0, 233.3, 512.0])
def test_rendering_has_the_requested_pitch(vowel, hz):
    measured = pitch_hz(sing_vowel(vowel, TENOR, hz), hz)
    assert abs(1200 * np.log2(measured / hz)) < 10


def test_rendering_follows_the_requested_f0_curve(held_out):
    f0_hz = demo_corpus.melody_hz(held_out, TENOR)
    longest = max(held_out.phones, key=lambda phone: phone[2] - phone[1])
    start, end = (round(t * SAMPLE_RATE) for t in longest[1:])
    steady = slice(start + 1600, start + 1600 + 4000)  # vibrato has not grown yet
    assert steady.stop < end
    for ratio in (1.0, 1.5):
        audio = demo_corpus.render(held_out, TENOR, ratio * f0_hz)
        want = ratio * float(np.mean(f0_hz[steady.start // 64 : steady.stop // 64]))
        measured = pitch_hz(audio[steady], want)
        assert abs(1200 * np.log2(measured / want)) < 30


def test_missing_pitch_is_taken_from_the_nearest_voiced_frame():
    score = vowel_score("AA")
    f0_hz = np.full(len(score.voiced), 200.0)
    truth = demo_corpus.render(score, ALTO, f0_hz)
    f0_hz[100:180] = 0
    np.testing.assert_array_equal(demo_corpus.render(score, ALTO, f0_hz), truth)
    with pytest.raises(ValueError, match="no voiced frame"):
        demo_corpus.render(score, ALTO, 0 * f0_hz)
    with pytest.raises(ValueError, match="score"):
        demo_corpus.render(score, ALTO, f0_hz[:-1])


@pytest.mark.parametrize("tract_length", [0.8, 1.0, 1.2])
@pytest.mark.parametrize(
    ("vowel", "formant_hz"), [("AA", 730), ("ER", 1350), ("EH", 1840), ("UW", 870)]
)
def test_formants_move_with_the_tract(vowel, formant_hz, tract_length):
    audio = sing_vowel(vowel, TENOR, 50.0, tract_length=tract_length, ring_db=0.0)
    frequencies, power = power_spectrum(audio)
    near = np.abs(np.log(frequencies[1:] / formant_hz)) < np.log(1.35)
    peak_hz = frequencies[1:][near][np.argmax(power[1:][near])]
    assert peak_hz == pytest.approx(formant_hz / tract_length, rel=0.05)


def test_voices_differ_in_timbre_but_not_in_level(held_out):
    f0_hz = demo_corpus.melody_hz(held_out, ALTO)
    renderings = [demo_corpus.render(held_out, s, f0_hz) for s in SINGERS]
    levels = np.corrcoef([10 ** (rms_db(audio) / 20) for audio in renderings])
    assert levels.min() > 0.95
    assert np.corrcoef([rms_db(audio) for audio in renderings]).min() > 0.95
    long_term = [10 * np.log10(np.mean(audio**2)) for audio in renderings]
    assert np.ptp(long_term) < 0.5
    assert -26 < np.mean(long_term) < -20
    for i, one in enumerate(renderings):
        assert one.dtype == np.float32
        assert np.max(np.abs(one)) < 0.9
        for other in renderings[:i]:
            frequencies, power = power_spectrum(one)
            _, other_power = power_spectrum(other)
            bands = [
                10 * np.log10(power[band].sum() / other_power[band].sum())
                for low in range(200, 6000, 200)
                for band in [(frequencies >= low) & (frequencies < low + 200)]
            ]
            assert np.std(bands) > 2


@pytest.mark.parametrize("hz", [440.0, 641.7, 1013.3])
def test_nothing_sounds_between_the_harmonics(hz):
    audio = sing_vowel("AA", TENOR, hz, breath_db=-200.0)
    frequencies, power = power_spectrum(audio)
    distance_hz = np.abs(frequencies - hz * np.rint(frequencies / hz))
    is_between = (distance_hz > 20) | (frequencies < hz / 2)
    assert power[is_between].max() < 1e-5 * power.max()
    assert power[is_between].sum() < 1e-5 * power.sum()


def test_rests_are_silent(held_out):
    audio = demo_corpus.render(held_out, BASS)
    assert np.max(np.abs(audio[:800])) < 1e-4
    assert np.max(np.abs(audio[-800:])) < 1e-4


def test_corpus_has_the_same_songs_in_every_voice(corpus):
    with (corpus / "transcripts.tsv").open() as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    paths = {str(p.relative_to(corpus)) for p in corpus.glob("recordings/*/*.wav")}
    assert {row["path"] for row in rows} == paths
    assert {row["split"] for row in rows} == {"train", "validation"}
    seconds = 0
    for row in rows:
        index = int(row["path"][-6:-4])
        song = demo_corpus.make_song(0, index)
        assert index >= demo_corpus.NUM_HELD_OUT
        assert row["path"].split("/")[1] == row["speaker"]
        assert row["text"] == song.text
        score = demo_corpus.score(song)
        assert row["phones"].split() == [label for label, _, _ in score.phones]
        info = soundfile.info(corpus / row["path"])
        assert (info.samplerate, info.channels) == (SAMPLE_RATE, 1)
        assert info.subtype == "PCM_16"
        assert info.frames == len(score.voiced) * demo_corpus.HOP_LENGTH
        seconds += info.duration
    assert 30 <= seconds < 60
    songs = [{r["text"] for r in rows if r["speaker"] == s} for s in ("alto", "bass")]
    assert songs[0] == songs[1]


def test_corpus_is_written_once(corpus, monkeypatch):
    monkeypatch.setattr(demo_corpus, "render", None)  # would fail if called
    again = demo_corpus.write_corpus(corpus, minutes=0.5, singers=(ALTO, BASS))
    assert again == corpus
    with pytest.raises(errors.UserError, match="seed 1"):
        demo_corpus.write_corpus(corpus, seed=1, minutes=0.5, singers=(ALTO, BASS))
    assert json.loads((corpus / "corpus.json").read_text())["seed"] == 0


def test_an_interrupted_corpus_leaves_nothing(tmp_path, monkeypatch):
    render, calls = demo_corpus.render, []

    def fail_at_the_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(*args, **kwargs)

    monkeypatch.setattr(demo_corpus, "render", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        demo_corpus.write_corpus(tmp_path / "corpus", minutes=0.1)
    assert not list(tmp_path.iterdir())
