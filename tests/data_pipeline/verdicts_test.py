"""The doctor against a corpus of bad files, each with its verdict; and good ones."""

import dataclasses
import os

import numpy as np
import pytest
import soundfile

from data_pipeline import decisions, extraction, verdicts
from data_pipeline.feature_cache import FeatureCache
from data_pipeline.sources import Source

RATE = 16_000
RNG = np.random.default_rng(0)


def voice(seconds: float = 2.0, hz: float = 220.0, level: float = 0.2) -> np.ndarray:
    """Harmonics with vibrato, swelling and ebbing as sung phrases do."""
    t = np.arange(round(seconds * RATE)) / RATE
    turns = np.cumsum(hz * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * t))) / RATE
    tone = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 9))
    return level * tone * (0.6 + 0.4 * np.sin(2 * np.pi * t / seconds)) ** 2


def hiss(seconds: float = 2.0, level: float = 0.1) -> np.ndarray:
    return RNG.normal(0, level, round(seconds * RATE))


def chord(seconds: float = 2.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    notes = [130.8, 164.8, 196.0, 246.9]
    parts = [np.sin(2 * np.pi * hz * k * t) / k for hz in notes for k in range(1, 8)]
    return 0.08 * np.sum(parts, axis=0)


def wav(path, samples, rate=RATE, subtype="FLOAT", **options):
    soundfile.write(path, samples, rate, subtype=subtype, **options)


def cut(path, share: float):
    """Leaves the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])


def with_part(samples, first: int, last: int, value) -> np.ndarray:
    samples = samples.copy()
    samples[first:last] = value
    return samples


def truncated(name: str, subtype: str):
    def make(path):
        soundfile.write(path, voice(4), RATE, subtype)
        cut(path, 0.6)

    return make


def swapped_header(path):
    wav(path, voice())
    path.write_bytes(b"RIFX" + path.read_bytes()[4:])


# name -> (makes the file, outcome, beginning of a reason)
BAD = {
    "empty.wav": (lambda p: p.touch(), "refused", "empty: holds no samples"),
    "no samples.wav": (lambda p: wav(p, np.zeros(0)), "refused", "empty: "),
    "no samples.flac": (
        lambda p: wav(p, np.zeros(0), subtype="PCM_16"),
        "refused",
        "empty: ",
    ),
    "text.wav": (
        lambda p: p.write_text("not audio" * 99),
        "refused",
        "unreadable: not readable as audio (",
    ),
    "noise bytes.mp3": (
        lambda p: p.write_bytes(RNG.bytes(5000)),
        "refused",
        "",
    ),
    "header only.wav": (
        lambda p: (wav(p, voice()), cut(p, 20 / 128_000)),
        "refused",
        "unreadable: ",
    ),
    "other file.flac": (
        lambda p: p.write_bytes(b"%PDF-1.7\n" + RNG.bytes(3000)),
        "refused",
        "unreadable: ",
    ),
    "video.m4a": (
        lambda p: p.write_bytes(b"\0\0\0\x20ftypM4A " + RNG.bytes(3000)),
        "refused",
        "unreadable: ",
    ),
    "broken link.wav": (
        lambda p: p.symlink_to(p.with_name("gone.wav")),
        "refused",
        "missing: ",
    ),
    "zeros.wav": (lambda p: wav(p, np.zeros(RATE)), "refused", "silent: every sample"),
    "faint.wav": (lambda p: wav(p, voice(level=2e-5)), "refused", "silent: nothing ab"),
    "opposite channels.wav": (
        lambda p: wav(p, np.stack([voice(), -voice()], 1)),
        "refused",
        "silent: its 2 channels cancel each other",
    ),
    "nan.wav": (
        lambda p: wav(p, with_part(voice(), 99, 102, np.nan)),
        "refused",
        "NaN: 3 samples are NaN or infinite",
    ),
    "infinity.wav": (
        lambda p: wav(p, with_part(voice(), 5, 6, np.inf)),
        "refused",
        "NaN: 1 samples",
    ),
    "one sample.wav": (lambda p: wav(p, [0.5]), "refused", "too short: 0.00 s"),
    "click.wav": (lambda p: wav(p, voice(0.08)), "refused", "too short: 0.08 s"),
    "hiss.wav": (lambda p: wav(p, hiss()), "refused", "unvoiced: "),
    "half a second.wav": (lambda p: wav(p, voice(0.3)), "warned", "short: 0.30 s"),
    "truncated.wav": (truncated("wav", "PCM_16"), "warned", "truncated: ends after 2."),
    "truncated.flac": (truncated("flac", "PCM_16"), "warned", "truncated: "),
    "truncated.mp3": (truncated("mp3", "MPEG_LAYER_III"), "warned", "truncated: "),
    "truncated.opus.ogg": (truncated("ogg", "OPUS"), "warned", "truncated: "),
    "truncated.aiff": (truncated("aiff", "PCM_16"), "warned", "truncated: "),
    "clipped.wav": (
        lambda p: wav(p, np.clip(8 * voice(), -1, 1), subtype="PCM_16"),
        "warned",
        "clipped: ",
    ),
    "clipped, then quieter.flac": (
        lambda p: wav(p, 0.4 * np.clip(8 * voice(), -1, 1), subtype="PCM_16"),
        "warned",
        "clipped: ",
    ),
    "offset.wav": (lambda p: wav(p, voice() * 0.5 + 0.2), "warned", "DC offset: +0.2"),
    "offset in one channel.wav": (
        lambda p: wav(p, np.stack([voice(), voice() * 0.5 - 0.1], 1)),
        "warned",
        "DC offset: -0.1",
    ),
    "too quiet.wav": (lambda p: wav(p, voice(level=7e-4)), "warned", "level: -6"),
    "too loud.wav": (
        lambda p: wav(p, np.tanh(30 * voice()) * 0.95),
        "warned",
        "level: -",
    ),
    "mostly hiss.wav": (
        lambda p: wav(p, np.concatenate([voice(1), hiss(9)])),
        "warned",
        "mostly unvoiced: ",
    ),
    "chord.wav": (lambda p: wav(p, chord()), "refused", "unvoiced: "),
    "accompanied.wav": (
        lambda p: wav(p, voice(2, 300) + 0.5 * chord()),
        "warned",
        "polyphonic or accompanied: ",
    ),
    "below a voice.wav": (
        lambda p: wav(p, voice(2, 51.0)),
        "warned",
        "out of f0 range: ",
    ),
}

GOOD = {
    "voice.wav": voice,
    "low.wav": lambda: voice(2, 90),
    "high.wav": lambda: voice(2, 700),
    "soft.wav": lambda: voice(2, 220, 0.01),
    "with pauses.wav": lambda: np.concatenate([voice(1), np.zeros(RATE), voice(1)]),
    "in a noisy room.wav": lambda: voice() + hiss(2, 0.002),
}


@pytest.fixture(scope="module")
def recipe(wav2letter_file) -> extraction.Recipe:
    return extraction.Recipe(f0="yin", wav2letter_path=wav2letter_file)


@pytest.fixture(scope="module")
def judged(tmp_path_factory, recipe) -> dict[str, verdicts.Verdict]:
    """The verdict on every bad and good file, each of a singer of its own."""
    folder = tmp_path_factory.mktemp("patients")
    for name, (make, *_) in BAD.items():
        make(folder / name)
    for name, make in GOOD.items():
        wav(folder / name, make())
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))
    patients = [Source(os.fspath(folder / name), name, name) for name in (*BAD, *GOOD)]
    heard = extraction.hear(patients, recipe, cache)
    decided = decisions.decide(heard, valid=0.0, strict=False, known={})
    return {each.heard.source.name: each.verdict for each in decided}


def test_there_are_many_kinds_of_bad_files():
    assert len(BAD) >= 25


@pytest.mark.parametrize("name", BAD)
def test_every_bad_file_has_its_verdict(judged, name):
    _, outcome, reason = BAD[name]
    assert judged[name].outcome == outcome, judged[name]
    assert any(said.startswith(reason) for said in judged[name].reasons), judged[name]


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_used_without_a_word(judged, name):
    assert judged[name] == verdicts.Verdict("used")


# Between recordings.


def heard(name: str, singer: str = "al", level_db: float = -20.0, **measures):
    sound = verdicts.Sound(
        level_db=level_db, voiced=0.8, confidence=0.9, harmonicity=0.9, f0_hz=200.0
    )
    return extraction.Heard(
        Source(name, singer, f"{singer}/{name}"),
        name,
        extraction.Measures(seconds=3.0, **{"sha256": name, **measures}),
        sound,
        48_000,
        ((0, 150),),
    )


def decide(*recordings, **options):
    options = {"valid": 0.0, "strict": False, "known": {}, **options}
    return {
        each.heard.source.name: each for each in decisions.decide(recordings, **options)
    }


def test_the_first_of_duplicates_by_name_is_used():
    found = decide(*(heard(n, sha256="same") for n in ("b", "c", "a")))
    assert found["al/a"].verdict.outcome == "used"
    for name in ("al/b", "al/c"):
        assert found[name].verdict.reasons == ("duplicate: of al/a",)
        assert not found[name].is_used


def test_a_duplicate_of_what_cannot_be_used_is_none():
    bad = heard("a", sha256="same", error=("NaN", "3 samples"))
    found = decide(bad, dataclasses.replace(bad, source=Source("b", "al", "al/b")))
    assert [each.verdict.reasons for each in found.values()] == [
        ("NaN: 3 samples",)
    ] * 2


def test_what_a_dataset_has_is_a_duplicate():
    found = decide(heard("a", sha256="x"), known={"x": "bo/old.wav"})
    assert found["al/a"].verdict.reasons == ("duplicate: of bo/old.wav",)


def test_a_level_far_from_the_singers_own_is_warned_of():
    usual = [heard(f"{n}", level_db=-20.0 - n) for n in range(5)]
    found = decide(*usual, heard("far", level_db=-44.0), heard("x", "bo", -44.0))
    (reason,) = found["al/far"].verdict.reasons
    assert reason == "level: -44 dB, the singer's usual one is -22 dB"
    assert found["bo/x"].verdict.outcome == "used"
    assert found["al/0"].verdict.outcome == "used"


def test_strict_refuses_warnings():
    found = decide(heard("a"), heard("b", dc_offset=0.1), strict=True)
    assert found["al/b"].verdict == verdicts.Verdict("refused", ("DC offset: +0.100",))
    assert found["al/a"].is_used


def test_only_what_is_used_is_split():
    bad = [heard(f"bad{n}", error=("NaN", "x")) for n in range(9)]
    found = decide(*bad, heard("a"), heard("b"), valid=0.5)
    splits = {name: each.heard.source.split for name, each in found.items()}
    assert sorted((splits["al/a"], splits["al/b"])) == ["train", "validation"]
    assert {splits[f"al/bad{n}"] for n in range(9)} == {None}


def test_decisions_survive_being_written_down():
    for each in decide(heard("a"), heard("b", error=("NaN", "x"))).values():
        assert decisions.Decision.from_json(each.to_json()) == each


# Real recordings.


def test_real_recordings_of_one_voice_are_seldom_warned_of(test_data, recipe, tmp_path):
    folder = test_data / "data"
    paths = [
        *sorted((folder / "singing" / "ravdess").glob("*/*.flac"))[::90],
        *sorted((folder / "speech" / "librispeech").glob("*/*.flac"))[::25],
    ]
    assert len(paths) > 10
    crepe = dataclasses.replace(
        recipe,
        f0="crepe-tiny",
        crepe_path=os.fspath(test_data / "weights" / "model-tiny.h5.bz2"),
    )
    cache = FeatureCache(tmp_path)
    warned = []
    for path in paths:
        source = Source(os.fspath(path), "x", path.name)
        (own,) = extraction.hear([source], crepe, cache)
        verdict = verdicts.judge(own.measures, own.sound)
        assert verdict.outcome != "refused", path
        if verdict.reasons:
            warned.append((path, verdict.reasons))
    # Clean song never is; a noisy reading may pass for an accompanied one.
    assert not [path for path, _ in warned if "ravdess" in path.parts]
    assert len(warned) <= 1, warned
