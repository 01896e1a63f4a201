"""Converting files: odd but good ones are converted, bad ones end with one line."""

import dataclasses
import io
import os
import pathlib
import resource
import subprocess
import sys

import flax
import numpy as np
import pytest
import scipy.signal
import soundfile

from data_pipeline import demo_corpus, listening
from svc_jax import bundles, conversion, convert, synthesis
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
    ("num_samples", "sample_rate", "channels", "subtype"),
    [
        (2756, 44_100, 2, "PCM_16"),
        (3001, 48_000, 1, "PCM_24"),
        (6007, 192_000, 1, "PCM_24"),
        (501, 8000, 1, "PCM_16"),
        (1000, 16_000, 6, "PCM_16"),
        (1, 16_000, 1, "FLOAT"),
        (1, 96_000, 1, "DOUBLE"),
        (7, 16_000, 1, "PCM_16"),
    ],
)
def test_odd_recordings_are_converted_as_long_as_they_are(
    sing, tmp_path, num_samples, sample_rate, channels, subtype
):
    audio = np.stack([singing(num_samples, sample_rate)] * channels, axis=1)
    soundfile.write(tmp_path / "a.wav", audio, sample_rate, subtype=subtype)
    code, out, err = sing(tmp_path / "a.wav")
    assert (code, err) == (0, "")
    assert (f"downmixed from {channels} channels" in out) == (channels > 1)
    assert "resampled" not in out
    assert out.startswith(f"{tmp_path / 'out' / 'a.wav'}")
    assert out.count("\n") == 1
    info = soundfile.info(tmp_path / "out" / "a.wav")
    assert (info.frames, info.samplerate) == (num_samples, sample_rate)
    assert (info.channels, info.subtype) == (1, subtype)


@pytest.mark.parametrize(
    ("num_samples", "sample_rate", "expected"),
    [(2756, 44_100, 1000), (500, 8000, 1000), (1, 96_000, 1)],
)
def test_results_may_have_the_models_rate(
    sing, tmp_path, num_samples, sample_rate, expected
):
    soundfile.write(tmp_path / "a.wav", singing(num_samples, sample_rate), sample_rate)
    code, out, _ = sing(tmp_path / "a.wav", "--sample_rate=model")
    assert code == 0
    assert f"(resampled from {sample_rate} to 16000 Hz" in out
    info = soundfile.info(tmp_path / "out" / "a.wav")
    assert (info.frames, info.samplerate) == (expected, 16_000)


@pytest.mark.parametrize("told", [0, 10, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wrong_length_in_the_header_does_not_matter(sing, song, tmp_path, told):
    content = bytearray(song.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = told.to_bytes(4, "little")
    if told > 1 << 20:  # as written to a pipe
        content[4:8] = told.to_bytes(4, "little")
    song.write_bytes(content)
    frames = soundfile.info(song).frames
    code, out, err = sing(song)
    if not frames:
        assert (code, err.count("\n")) == (2, 1)
        return
    assert (code, err) == (0, "")
    assert "before it should" not in out
    assert soundfile.info(tmp_path / "out" / "song.wav").frames == frames


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


def peak_between_samples(audio) -> float:
    """An independent true peak: by Fourier, 16 samples for one."""
    padded = np.pad(audio, 500)
    return np.abs(scipy.signal.resample(padded, 16 * padded.size)).max()


@pytest.mark.parametrize(
    ("hz", "amplitude", "turned_down"),
    # A sine of a quarter of the rate, whose samples are 0.71 of its peak.
    [(4000, 1.2, True), (4000, 0.9, False), (440, 2.5, True), (440, 0.9, False)],
)
def test_what_would_clip_is_turned_down_and_it_is_said(
    sing, song, tmp_path, monkeypatch, hz, amplitude, turned_down
):
    turns = hz * np.arange(960) / 16_000 + 1 / 8
    window = np.minimum(1, np.hanning(960) * 8)
    loud = (amplitude * window * np.sin(2 * np.pi * turns)).astype(np.float32)
    monkeypatch.setattr(synthesis, "sing", lambda *_, **__: [loud[:500], loud[500:]])
    soundfile.write(song, singing(960), 16_000)
    code, out, _ = sing(song)
    assert code == 0
    assert ("dB against clipping" in out) == turned_down
    audio, _ = soundfile.read(tmp_path / "out" / "song.wav")
    expected = 0.99 if turned_down else amplitude
    assert peak_between_samples(audio) == pytest.approx(expected, abs=0.01)
    if turned_down:
        said = 20 * np.log10(amplitude / 0.99)
        assert float(out.partition("turned down by ")[2].split()[0]) == pytest.approx(
            said, abs=0.15
        )
    else:
        np.testing.assert_allclose(audio, loud, atol=2**-15)


def test_where_the_source_is_silent_the_result_is(sing, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)

    def hiss(*_, **__):
        yield from rng.normal(0, 0.2, (6, 6400)).astype(np.float32)

    monkeypatch.setattr(synthesis, "sing", hiss)
    for rate in (16_000, 44_100):
        audio = singing(2 * rate, rate)
        quiet = [(0, rate // 10), (rate // 2, rate), (rate * 3 // 2, 2 * rate)]
        for begin, end in quiet:
            audio[begin:end] = 0
        audio[rate * 5 // 4 : rate * 5 // 4 + rate // 100] = 0  # 10 ms: a consonant
        soundfile.write(tmp_path / "a.flac", np.stack([audio, audio], 1), rate)
        assert sing(tmp_path / "a.flac")[0] == 0
        result, _ = soundfile.read(tmp_path / "out" / "a.wav")
        assert result.size == audio.size
        for begin, end in quiet:
            assert np.abs(result[begin:end]).max() <= 1e-3  # -60 dB
        sounding = np.abs(result[rate // 10 : rate // 2])
        assert np.sqrt(np.mean(sounding**2)) > 0.1
        assert np.abs(result[rate * 5 // 4 : rate * 5 // 4 + rate // 100]).max() > 0.1


def test_loudness_is_told_to_the_generator(sing, song, tmp_path, monkeypatch):
    told = []

    def listen(model, f0_hz, loudness_db, *_, **__):
        told.append(np.asarray(loudness_db))
        return [np.zeros(f0_hz.size * 64, np.float32)]

    monkeypatch.setattr(synthesis, "sing", listen)
    assert sing(song)[0] == sing(song, "--loudness=-6.5")[0] == 0
    np.testing.assert_allclose(told[1], told[0] - 6.5, atol=1e-4)


def test_the_pitch_can_be_saved_edited_and_sung(sing, tmp_path):
    path, table = tmp_path / "song.wav", tmp_path / "f0.csv"
    soundfile.write(path, singing(6000), 16_000, subtype="FLOAT")

    def sung(*flags) -> np.ndarray:
        assert sing(path, *flags)[0] == 0
        return soundfile.read(tmp_path / "out" / "song.wav")[0]

    first = sung(f"--save_f0={table}")
    np.testing.assert_array_equal(sung(f"--f0={table}"), first)
    header, *lines = table.read_text().splitlines()
    assert header == "seconds,f0_hz"
    assert len(lines) == 5 * -(-6000 // 320)
    rows = np.array([list(map(float, line.split(","))) for line in lines])
    assert (rows[:, 1] > 0).mean() > 0.8
    # A fifth up, by hand and by the rule.
    edited = rows * (1, 2 ** (7 / 12))
    table.write_text("\n".join(f"{t},{hz}" for t, hz in edited))
    again = tmp_path / "again.csv"
    higher = sung(f"--f0={table}", f"--save_f0={again}")
    assert np.abs(higher - first).max() > 1e-3
    found = np.loadtxt(again, delimiter=",", skiprows=1)
    np.testing.assert_allclose(found, edited, rtol=1e-6)
    table.write_text("\n".join(f"{t},{hz}" for t, hz in rows))
    np.testing.assert_allclose(
        sung(f"--f0={table}", "--transpose=7"), higher, atol=1e-4
    )


def test_long_recordings_are_converted_as_short_ones(
    sing, one_model, tmp_path, monkeypatch
):
    song_ = demo_corpus.score(demo_corpus.make_song(5, 3))
    audio = demo_corpus.render(song_, demo_corpus.SINGERS[3])[: 9 * 16_000 + 77]
    soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
    results = []
    for long_seconds, chunk in ((16, 1 << 30), (2, 16_000)):
        monkeypatch.setattr(listening, "LONG_SECONDS", long_seconds)
        monkeypatch.setattr(synthesis, "CHUNK_SAMPLES", chunk)
        monkeypatch.setattr(
            conversion.LongRecording.__init__, "__defaults__", (3,)
        )  # seconds of a block
        assert sing(tmp_path / "a.wav")[0] == 0
        results.append(soundfile.read(tmp_path / "out" / "a.wav")[0])
    whole, chunked = results
    assert chunked.shape == whole.shape == audio.shape
    assert np.abs(whole).max() > 1e-2
    assert np.abs(chunked - whole).max() < 1e-4


@pytest.mark.proof
def test_an_hour_is_converted_in_bounded_memory(model_workdir, tmp_path):
    source = tmp_path / "hour.flac"
    with soundfile.SoundFile(source, "w", 16_000, 2) as file:
        for hz in np.linspace(150, 450, 180):
            turns = hz * np.arange(17 * 16_000) / 16_000
            note = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 6)) * 0.1
            part = np.concatenate([note, np.zeros(3 * 16_000)])
            file.write(np.stack([part, 0.5 * part], 1))
    flags = [f"--model={model_workdir}", "--singer=alto", f"--output={tmp_path}/out"]
    command = [sys.executable, "-m", "svc_jax.convert", *flags, str(source)]
    child = subprocess.Popen(command)
    _, child.returncode, usage = os.wait4(child.pid, 0)
    assert child.returncode == 0
    gigabytes = usage.ru_maxrss / 1e6
    print(f"an hour of stereo at 16 kHz: {gigabytes:.2f} GB at most")
    assert gigabytes < 1.5
    assert soundfile.info(tmp_path / "out" / "hour.wav").frames == 3600 * 16_000


def test_an_accompanied_voice_is_said_to_be_one(sing, tmp_path):
    seconds = np.arange(32_000) / 16_000

    def tone(hz, harmonics):
        orders = range(1, harmonics + 1)
        return sum(np.sin(2 * np.pi * k * hz * seconds) / k for k in orders)

    voice = 0.1 * tone(300, 8)
    band = voice + 0.04 * sum(tone(hz, 7) for hz in (130.8, 164.8, 196.0, 246.9))
    soundfile.write(tmp_path / "band.wav", band, 16_000)
    soundfile.write(tmp_path / "voice.wav", voice, 16_000)
    said = "it seems accompanied: isolate the voice first"
    assert said not in sing(tmp_path / "voice.wav")[1]
    code, out, _ = sing(tmp_path / "band.wav")
    assert code == 0
    assert said in out


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


# Where recordings are found, and where results go.


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Files a.flac, b/a.wav, b/c.wav and one that is no audio, in the working folder."""
    (tmp_path / "b").mkdir()
    for name in ("a.flac", "b/a.wav", "b/c.wav"):
        soundfile.write(tmp_path / name, singing(400), 16_000)
    (tmp_path / "b" / "notes.txt").write_text("la la la")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["a.flac"], {"a.flac": "a.wav"}),
        (["."], {"a.flac": "a.wav", "b/a.wav": "b/a.wav", "b/c.wav": "b/c.wav"}),
        (["b"], {"b/a.wav": "a.wav", "b/c.wav": "c.wav"}),
        (["b/[a-c].wav"], {"b/a.wav": "a.wav", "b/c.wav": "c.wav"}),
        (["**/c.*"], {"b/c.wav": "c.wav"}),
        (["x/missing.v1.wav"], {"x/missing.v1.wav": "missing.v1.wav"}),
        (["-"], {"-": "stdin.wav"}),
    ],
)
def test_files_folders_and_patterns_are_found(album, arguments, found):
    sources = convert.find_sources(arguments)
    assert {source.path: source.name for source in sources} == found


def test_where_nothing_is_found_it_is_said(album, tmp_path):
    (tmp_path / "empty").mkdir()
    for argument, said in (
        ("empty", "empty: holds no audio files; check the path."),
        ("*.mp3", "*.mp3: nothing matches; check the pattern."),
    ):
        with pytest.raises(UserError) as caught:
            convert.find_sources([argument])
        assert str(caught.value) == said


def test_a_folder_is_converted_as_it_is_laid_out(sing, album, tmp_path):
    code, out, _ = sing(".")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert files_below(tmp_path / "out") == ["a.wav", "b/a.wav", "b/c.wav"]


def test_a_recording_may_come_and_go_by_pipes(sing, song, tmp_path, monkeypatch):
    assert sing(song)[0] == 0
    expected = (tmp_path / "out" / "song.wav").read_bytes()

    class Stream(io.BytesIO):
        """Of bytes, as a pipe, and of text."""

        @property
        def buffer(self):
            return self

        def write(self, data):
            return super().write(data if isinstance(data, bytes) else data.encode())

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", Stream(song.read_bytes()))
        patch.setattr(sys, "stdout", stdout := Stream())
        code, _, err = sing("-", output="-")
    assert (code, err) == (0, "-\n")
    assert stdout.getvalue() == expected


def test_a_pipe_that_breaks_ends_with_one_line(sing, song, monkeypatch):
    class Broken:
        buffer = property(lambda self: self)

        def write(self, _):
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        code, _, err = sing(song, output="-")
    assert code == 2
    assert err.startswith(f"error: {song}: cannot pass by way of ")
    assert err.endswith(" (Broken pipe); make room there, or name files.\n")
    assert err.count("\n") == 1


def paths_of(inputs, output) -> list[pathlib.Path]:
    return convert.output_paths(convert.find_sources(inputs), output)


def test_results_are_named_after_their_sources(tmp_path):
    paths = paths_of(["x/a.b.flac", "y/c.wav"], str(tmp_path))
    assert paths == [tmp_path / "a.b.wav", tmp_path / "c.wav"]
    assert paths_of(["a.mp3"], str(tmp_path / "new" / "b.flac")) == [
        tmp_path / "new" / "b.flac"
    ]
    (tmp_path / "odd.wav").mkdir()
    assert paths_of(["a.mp3"], str(tmp_path / "odd.wav")) == [
        tmp_path / "odd.wav" / "a.wav"
    ]


@pytest.mark.parametrize(
    ("inputs", "output", "said"),
    [
        (["a.wav", "b.wav"], "o.wav", "--output o.wav: one file, but 2 inputs; name a"),
        (["a.wav", "b.wav"], "-", "--output -: one file, but 2 inputs; name a folder."),
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
        paths_of(inputs, output)
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
        (None, "there is no such file; check the path."),
        (b"", "holds no samples; record it again."),
        (b"words", "not readable as audio (Format not recognised); convert it to"),
        (np.zeros((0, 1)), "holds no samples; record it again."),
        (np.zeros(100), "every sample is zero; there is nothing to convert."),
        (np.array([0.1, np.nan]), "1 samples are NaN or infinite; export it again."),
        (np.array([[0.1, -0.1]]), "its 2 channels cancel each other; there is nothing"),
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
        (["--loudness=99"], "alto", "--loudness 99: choose from -60 to 60 dB."),
        (["--loudness=nan"], "alto", "--loudness nan: choose from -60 to 60 dB."),
        (["--sample_rate=8000"], "alto", "flag --sample_rate=8000: value should be"),
        (["other.wav", "--save_f0=x"], "alto", "--save_f0 x: one table, but 2 inputs;"),
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


def test_others_go_on_where_one_fails(sing, song, tmp_path):
    missing, words = tmp_path / "missing.wav", tmp_path / "words.wav"
    words.write_text("words")
    code, out, err = sing(missing, song, words)
    assert code == 1
    assert out == f"{tmp_path / 'out' / 'song.wav'}\n"
    first, *failures = err.splitlines()
    assert first == "2 of 3 recordings failed:"
    assert failures[0] == f"  {missing}: there is no such file; check the path."
    assert failures[1].startswith(f"  {words}: not readable as audio")
    assert files_below(tmp_path / "out") == ["song.wav"]
    assert soundfile.info(tmp_path / "out" / "song.wav").frames == 1000


def test_a_full_disk_leaves_nothing_half_written(sing, tmp_path):
    source = tmp_path / "long.wav"
    soundfile.write(source, singing(40_000), 16_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sing(source, output=tmp_path / "first")  # what is compiled may be written
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, out, err = sing(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    result = tmp_path / "out" / "long.wav"
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {result}: cannot be written (")
    assert err.endswith("); name another --output, or make room.\n")
    assert err.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_an_output_that_cannot_be_made_is_refused(sing, song, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = sing(song, output=tmp_path / "file" / "out")
    assert code == 2
    assert "cannot be written (Not a directory)" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not readable as a table (No such file or directory)."),
        (b"\xff\xfe\x00", "not readable as a table ('utf-8' codec can't decode"),
        (b"", "holds no line of seconds,f0_hz."),
        (b"seconds,f0_hz\n", "holds no line of seconds,f0_hz."),
    ],
)
def test_what_is_no_table_of_pitch_is_refused(sing, song, tmp_path, content, said):
    table = tmp_path / "f0.csv"
    if content is not None:
        table.write_bytes(content)
    assert_refused(sing(song, f"--f0={table}"), f"{table}: {said}", tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1.0,high", "'1.0,high' is not seconds,f0_hz."),
        ("1.0", "'1.0' is not seconds,f0_hz."),
        ("1,2,3", "'1,2,3' is not seconds,f0_hz."),
        ("1,-5", "'1,-5'; give 0 for unvoiced, or up to 8000 Hz."),
        ("1,nan", "'1,nan'; give 0 for unvoiced, or up to 8000 Hz."),
        ("1,9000", "'1,9000'; give 0 for unvoiced, or up to 8000 Hz."),
        ("0.5,200", "0.5 s does not come after 0.5 s; sort the lines."),
    ],
)
def test_bad_lines_of_pitch_are_named(sing, song, tmp_path, line, said):
    table = tmp_path / "f0.csv"
    table.write_text(f"seconds,f0_hz\n0.5,220\n{line}\n")
    assert_refused(sing(song, f"--f0={table}"), f"{table}, line 3: {said}", tmp_path)
