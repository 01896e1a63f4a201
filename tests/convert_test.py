"""Converting files: odd but good ones are converted, bad ones end with one line."""

import dataclasses

import flax
import numpy as np
import pytest
import soundfile

from svc_jax import bundles, convert, synthesis
from svc_jax.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def one_model(model_workdir):
    """Loads the model once for all conversions of this file; it sings softly."""
    load = bundles.load
    model = load(model_workdir)
    params = flax.core.copy(model.params, {})
    output = params["wavenet"]["output1"]
    params["wavenet"]["output1"] = {**output, "scale": 0.1 * output["scale"]}
    model = dataclasses.replace(model, params=params)

    def load_once(path):
        return model if str(path) == str(model_workdir) else load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "load", load_once)
        yield model


def singing(num_samples: int, sample_rate: int = 16_000) -> np.ndarray:
    turns = 220 * np.arange(num_samples) / sample_rate
    return sum(0.3 / k * np.sin(2 * np.pi * k * turns + 0.4) for k in range(1, 6))


@pytest.fixture
def song(tmp_path):
    """A recording that needs nothing done to it."""
    path = tmp_path / "song.wav"
    soundfile.write(path, singing(1000), 16_000)
    return path


@pytest.fixture
def sing(start, model_workdir, tmp_path):
    """Converts files to alto, or as the flags say; their results go to `out`."""

    def run(*arguments, singer="alto", output=tmp_path / "out"):
        flags = [f"--model={model_workdir}", f"--output={output}"]
        if singer:
            flags.append(f"--singer={singer}")
        return start(convert, *flags, *arguments)

    return run


def files_below(folder) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))


# What is good.


@pytest.mark.parametrize(
    ("name", "subtype", "written"),
    [
        ("a.wav", "PCM_U8", "PCM_U8"),
        ("a.wav", "PCM_16", "PCM_16"),
        ("a.wav", "PCM_24", "PCM_24"),
        ("a.wav", "FLOAT", "FLOAT"),
        ("a.wav", "DOUBLE", "DOUBLE"),
        ("a.wav", "IMA_ADPCM", "PCM_16"),
        ("a.flac", "PCM_24", "PCM_24"),
        ("a.ogg", "VORBIS", "PCM_16"),
        ("a.mp3", "MPEG_LAYER_III", "PCM_16"),
    ],
)
def test_every_sample_format_is_converted(sing, tmp_path, name, subtype, written):
    soundfile.write(tmp_path / name, singing(1010), 16_000, subtype=subtype)
    num_samples = soundfile.info(tmp_path / name).frames
    result = tmp_path / "out" / "a.wav"
    assert sing(tmp_path / name) == (0, f"{result}\n", "")
    info = soundfile.info(result)
    assert (info.frames, info.channels, info.samplerate) == (num_samples, 1, 16_000)
    assert (info.format, info.subtype) == ("WAV", written)
    assert np.abs(soundfile.read(result)[0]).max() > 0.01


@pytest.mark.parametrize(
    ("num_samples", "sample_rate", "channels", "expected", "changes"),
    [
        (2756, 44_100, 2, 1000, "downmixed from 2 channels, resampled from 44100 to"),
        (3000, 48_000, 1, 1000, "resampled from 48000 to 16000 Hz"),
        (500, 8000, 1, 1000, "resampled from 8000 to 16000 Hz"),
        (1000, 16_000, 5, 1000, "downmixed from 5 channels"),
        (1, 16_000, 1, 1, ""),
        (1, 96_000, 1, 1, "resampled from 96000 to 16000 Hz"),
        (7, 16_000, 1, 7, ""),
    ],
)
def test_odd_recordings_are_converted_and_it_is_said(
    sing, tmp_path, num_samples, sample_rate, channels, expected, changes
):
    audio = np.stack([singing(num_samples, sample_rate)] * channels, axis=1)
    soundfile.write(tmp_path / "a.flac", audio, sample_rate)
    code, out, err = sing(tmp_path / "a.flac")
    assert (code, err) == (0, "")
    assert out.startswith(
        f"{tmp_path / 'out' / 'a.wav'}" + (changes and f" ({changes}")
    )
    assert out.count("\n") == 1
    info = soundfile.info(tmp_path / "out" / "a.wav")
    assert (info.frames, info.samplerate) == (expected, 16_000)


def test_the_file_is_the_conversion(sing, song, one_model, tmp_path):
    soundfile.write(song, singing(1000), 16_000, subtype="FLOAT")
    assert sing(song, "--transpose=-3", "--seed=4")[0] == 0
    source = singing(1000).astype(np.float32)
    expected, _ = synthesis.convert(
        one_model, source, {"alto": 1.0}, transpose="-3", seed=4
    )
    found, _ = soundfile.read(tmp_path / "out" / "song.wav", dtype="float32")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for flags in (["--transpose=-3", "--seed=5"], ["--seed=4"]):
        assert sing(song, *flags)[0] == 0
        other, _ = soundfile.read(tmp_path / "out" / "song.wav", dtype="float32")
        assert np.abs(other - found).max() > 1e-3


def test_a_mixture_sings(sing, song, tmp_path):
    assert sing(song, "--mix=alto:0.5,bass:0.5", singer=None)[0] == 0
    mixed, _ = soundfile.read(tmp_path / "out" / "song.wav")
    for singer in ("alto", "bass"):
        assert sing(song, singer=singer)[0] == 0
        alone, _ = soundfile.read(tmp_path / "out" / "song.wav")
        assert np.abs(mixed - alone).max() > 1e-3


def test_what_would_clip_is_turned_down_and_it_is_said(
    sing, song, tmp_path, monkeypatch
):
    loud = np.array([0.5, -2.5, 1.0], np.float32)
    monkeypatch.setattr(synthesis, "convert", lambda *_, **__: (loud, None))
    code, out, _ = sing(song)
    assert code == 0
    assert "(turned down by a factor of 2.50 against clipping)" in out
    audio, _ = soundfile.read(tmp_path / "out" / "song.wav")
    np.testing.assert_allclose(audio, [0.2, -1.0, 0.4], atol=2**-15)


def test_several_recordings_go_into_a_folder(sing, song, tmp_path):
    other = tmp_path / "album" / "other.flac"
    other.parent.mkdir()
    soundfile.write(other, singing(990), 16_000)
    code, out, _ = sing(song, other)
    assert code == 0
    results = [tmp_path / "out" / name for name in ("song.wav", "other.wav")]
    assert out.splitlines() == [str(path) for path in results]
    assert [soundfile.info(path).frames for path in results] == [1000, 990]
    assert files_below(tmp_path / "out") == ["other.wav", "song.wav"]


@pytest.mark.parametrize("name", ["sung.flac", "new/sung.ogg", "sung.WAV"])
def test_one_recording_may_go_to_a_named_file(sing, song, tmp_path, name):
    assert sing(song, output=tmp_path / name)[1] == f"{tmp_path / name}\n"
    info = soundfile.info(tmp_path / name)
    assert info.format == name.rpartition(".")[2].upper()
    assert info.frames == 1000


# Where results go.


def test_results_are_named_after_their_sources(tmp_path):
    paths = convert.output_paths(["x/a.b.flac", "y/c.wav"], tmp_path)
    assert paths == [tmp_path / "a.b.wav", tmp_path / "c.wav"]
    assert convert.output_paths(["a.mp3"], tmp_path / "new" / "b.flac") == [
        tmp_path / "new" / "b.flac"
    ]
    (tmp_path / "odd.wav").mkdir()
    assert convert.output_paths(["a.mp3"], tmp_path / "odd.wav") == [
        tmp_path / "odd.wav" / "a.wav"
    ]


@pytest.mark.parametrize(
    ("inputs", "output", "said"),
    [
        (["a.wav", "b.wav"], "out.wav", "--output out.wav: a file, but 2 inputs; name"),
        (
            ["x/a.wav", "y/a.flac"],
            "out",
            "out/a.wav: two inputs would be written there",
        ),
        (["x/a.wav"], "x", "x/a.wav: is an input; name another --output."),
        (["x/a.wav"], "y/../x", "y/../x/a.wav: is an input; name another --output."),
        (["a.flac"], "a.flac", "a.flac: is an input; name another --output."),
        (["a.flac", "a/a.wav"], "a", "a/a.wav: two inputs would be written there"),
    ],
)
def test_results_that_would_replace_something_are_refused(
    tmp_path, monkeypatch, inputs, output, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        convert.output_paths(inputs, output)
    assert str(caught.value).startswith(said)


# What is bad.


def assert_refused(result, said: str, folder):
    """One line, exit code 2, and nothing written."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; check the path."),
        (b"", "is empty; record it again."),
        (b"words", "not readable as audio (Format not recognised); convert it to"),
        (np.zeros((0, 1)), "holds no samples; record it again."),
        (np.zeros(100), "every sample is zero; there is nothing to convert."),
        (np.array([0.1, np.nan]), "1 samples are NaN or infinite; export it again."),
        (np.array([[0.1, -0.1]]), "its 2 channels cancel each other; export one."),
    ],
)
def test_bad_recordings_are_refused(sing, tmp_path, content, said):
    path = tmp_path / "a.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, content, 16_000, subtype="FLOAT")
    assert_refused(sing(path), f"{path}: {said}", tmp_path)


@pytest.mark.parametrize(
    ("flags", "singer", "said"),
    [
        ([], "tenor", "singer 'tenor' is unknown; the model knows alto, bass."),
        ([], None, "name a voice by --singer NAME, or a mixture by --mix A:0.5,B:0.5."),
        (["--mix=alto:1"], "alto", "name a voice by --singer NAME, or a mixture by"),
        (["--mix="], None, "--mix '': '' is not NAME:WEIGHT; write A:0.5,B:0.5."),
        (["--mix=alto:0.5"], None, "--mix 'alto:0.5': the weights add up to 0.5; they"),
        (["--mix=alto:1,tenor:0"], None, "singer 'tenor' is unknown; the model knows"),
        (["--transpose=up"], "alto", "--transpose 'up': choose mean, octave, none or"),
        (
            ["--transpose=99"],
            "alto",
            "--transpose 99: choose from -48 to 48 semitones.",
        ),
        (["--seed=x"], "alto", "flag --seed=x: invalid literal for int()"),
    ],
)
def test_wrong_wishes_are_refused_before_any_work(sing, tmp_path, flags, singer, said):
    # The recording does not exist either, but the wish is looked at first.
    result = sing(tmp_path / "missing.wav", *flags, singer=singer)
    assert_refused(result, said, tmp_path)


def test_no_recording_is_refused(sing, tmp_path):
    assert_refused(sing(), "no recording is named; add one: ... song.wav", tmp_path)


def test_a_folder_that_is_no_model_is_refused(start, song, tmp_path, recordings):
    for model, said in (
        (tmp_path / "missing", "no such folder; --model is a workdir or an export."),
        (recordings, "no config.json, so no trained model; train first."),
    ):
        result = start(
            convert, f"--model={model}", "--singer=x", f"--output={tmp_path}/out", song
        )
        assert_refused(result, f"{model}: {said}", tmp_path)


def test_an_output_that_is_not_named_as_audio_is_a_folder(sing, song, tmp_path):
    assert sing(song, output=tmp_path / "out.aac")[0] == 0
    assert files_below(tmp_path / "out.aac") == ["song.wav"]


def test_a_bad_recording_among_good_ones_leaves_whole_files(sing, song, tmp_path):
    missing = tmp_path / "missing.wav"
    code, out, err = sing(song, missing)
    assert code == 2
    assert out == f"{tmp_path / 'out' / 'song.wav'}\n"
    assert err == f"error: {missing}: no such file; check the path.\n"
    assert files_below(tmp_path / "out") == ["song.wav"]
    assert soundfile.info(tmp_path / "out" / "song.wav").frames == 1000
