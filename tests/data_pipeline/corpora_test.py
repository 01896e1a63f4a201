"""Recipes for public corpora, on tiny folders of the same shapes."""

import pathlib

import numpy as np
import pytest
import soundfile

from data_pipeline import corpora, sources
from svc_jax.errors import UserError

# corpus -> files that it has, with the singer and the song of each recording that is
# to be found; None where there is nothing to be found.
LAYOUTS = {
    "nus48e": {
        "nus-smc-corpus_48/ADIZ/sing/01.wav": ("ADIZ", "ADIZ/01"),
        "nus-smc-corpus_48/ADIZ/read/01.wav": ("ADIZ", "ADIZ/01"),
        "nus-smc-corpus_48/JLEE/sing/05.wav": ("JLEE", "JLEE/05"),
        "nus-smc-corpus_48/ADIZ/sing/01.txt": None,
        "nus-smc-corpus_48/README.txt": None,
    },
    "ravdess": {
        "Actor_01/03-02-01-01-01-01-01.wav": ("01", ""),
        "Actor_24/03-01-08-02-02-02-24.wav": ("24", ""),
        "Audio_Song_Actors_01-24/Actor_02/03-02-06-01-02-01-02.wav": ("02", ""),
        "Actor_01/01-02-01-01-01-01-01.mp4": None,
        "Actor_01/notes.wav": None,
    },
    "vctk": {
        "wav48_silence_trimmed/p225/p225_001_mic1.flac": ("p225", "p225/001"),
        "wav48_silence_trimmed/p225/p225_001_mic2.flac": None,
        "wav48_silence_trimmed/s5/s5_400_mic1.flac": ("s5", "s5/400"),
        "wav48_silence_trimmed/log.txt": None,
        "txt/p225/p225_001.txt": None,
        "speaker-info.txt": None,
    },
    "ljspeech": {
        "LJSpeech-1.1/wavs/LJ001-0001.wav": ("LJ", "LJ/001"),
        "LJSpeech-1.1/wavs/LJ001-0002.wav": ("LJ", "LJ/001"),
        "LJSpeech-1.1/wavs/LJ050-0278.wav": ("LJ", "LJ/050"),
        "LJSpeech-1.1/metadata.csv": None,
    },
    "opensinger": {
        "ManRaw/0_光年之外/0_光年之外_0.wav": ("Man_0", "Man_0/光年之外"),
        "ManRaw/0_光年之外/0_光年之外_1.wav": ("Man_0", "Man_0/光年之外"),
        "ManRaw/0_光年之外/0_光年之外_1.lab": None,
        "WomanRaw/0_默/0_默_28.wav": ("Woman_0", "Woman_0/默"),
        "LICENSE": None,
    },
    "vocalset": {
        "FULL/female1/arpeggios/belt/f1_arpeggios_belt_c_a.wav": ("female1", ""),
        "FULL/male8/excerpts/vibrato/m9_caro_vibrato.wav": ("male8", ""),
        "VocalSet1-2/data_by_singer/male11/scales/fast/m11_a.wav": ("male11", ""),
        "VocalSet1-2/data_by_technique/belt/f1_arpeggios_belt_c_a.wav": None,
        "FULL/.DS_Store": None,
    },
    "libritts": {
        "dev-clean/1272/128104/1272_128104_000001_000000.wav": ("1272", "1272/128104"),
        "LibriTTS/train-clean-100/19/198/19_198_000000_000000.wav": ("19", "19/198"),
        "LibriTTS/train-clean-100/19/198/19_198.trans.tsv": None,
        "test-other/367/130732/367_130732_000002_000000.wav": ("367", "367/130732"),
        "speakers.tsv": None,
    },
    "m4singer": {
        "Alto-1#美错/0000.wav": ("Alto-1", "Alto-1/美错"),
        "Alto-1#美错/0001.wav": ("Alto-1", "Alto-1/美错"),
        "m4singer/Tenor-7#A Song/0012.wav": ("Tenor-7", "Tenor-7/A Song"),
        "Alto-1#美错/0000.TextGrid": None,
        "meta.json": None,
    },
}


def laid_out(folder: pathlib.Path, names) -> pathlib.Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_every_recipe_is_tried_and_documented():
    assert LAYOUTS.keys() == corpora.CORPORA.keys()
    for name, corpus in corpora.CORPORA.items():
        assert "https://" in corpus.documented, name


@pytest.mark.parametrize("name", LAYOUTS)
def test_recordings_are_found_with_their_singers_and_songs(tmp_path, name):
    layout = LAYOUTS[name]
    found = corpora.find(name, laid_out(tmp_path, layout))
    assert {
        source.path.removeprefix(f"{tmp_path}/"): (source.singer, source.song)
        for source in found
    } == {path: facts for path, facts in layout.items() if facts}
    assert len({source.name for source in found}) == len(found)
    for source in found:
        assert source.name.startswith(f"{source.singer}/")


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_folder_is_refused(tmp_path, name):
    laid_out(tmp_path, ["alto/song.wav"])
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError) as caught:
            corpora.find(name, folder)
        assert str(caught.value).startswith(f"{folder}: holds no recordings of {name} ")
        assert corpora.CORPORA[name].documented in str(caught.value)


# Of tensorflow-datasets.


@pytest.fixture
def ljspeech(tmp_path) -> pathlib.Path:
    """Four sentences as tensorflow-datasets would have prepared them."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import sequential_writer

    builder = tfds.builder("ljspeech", data_dir=tmp_path)
    identity = tfds.core.DatasetIdentity(
        name="ljspeech",
        version=builder.version,
        data_dir=str(builder.data_path),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=builder.info.features)
    builder.data_path.mkdir(parents=True)
    writer = sequential_writer.SequentialWriter(info, max_examples_per_shard=9)
    writer.initialize_splits(["train"])
    examples = [
        {
            "id": f"LJ00{n % 2}-000{n}",
            "speech": np.arange(n, 2000 + n, dtype=np.int64),
            "text": "",
            "text_normalized": "",
        }
        for n in range(4)
    ]
    writer.add_examples({"train": examples})
    writer.close_all()
    return tmp_path


def test_a_dataset_of_tensorflow_datasets_becomes_files(ljspeech, tmp_path):
    folder = tmp_path / "files"
    found = corpora.from_tfds("ljspeech", str(ljspeech), str(folder))
    assert [source.singer for source in found] == ["LJ"] * 4
    assert [source.song for source in found] == [f"LJ/LJ00{n % 2}" for n in range(4)]
    for number, source in enumerate(found):
        pcm, rate = soundfile.read(source.path, dtype="int16")
        assert rate == 22_050
        np.testing.assert_array_equal(pcm, np.arange(number, 2000 + number))
    assert sources.assign_splits(found, 0.5)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")}
    corpora.from_tfds("ljspeech", str(ljspeech), str(folder))
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")}


def test_a_dataset_that_is_unknown_or_not_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match="--tfds mnist: choose one of vctk, ljspeech"):
        corpora.from_tfds("mnist", str(tmp_path), str(tmp_path))
    with pytest.raises(UserError, match="--tfds ljspeech: nothing in .*; prepare it"):
        corpora.from_tfds("ljspeech", str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("name", corpora.TFDS)
def test_the_fields_that_are_read_are_those_of_tensorflow_datasets(tmp_path, name):
    import tensorflow_datasets as tfds

    features = tfds.builder(name, data_dir=tmp_path).info.features
    field, sample_rate, singer_of, song_of = corpora.TFDS[name]
    rate = getattr(features[field], "_audio_decoder", features[field])
    assert getattr(features[field], "sample_rate", None) in (None, sample_rate), rate
    example = {
        key: np.int64(0) if features[key].dtype == np.int64 else b"x-1"
        for key in features
        if not hasattr(features[key], "keys") and key != field
    }
    for key in features:
        if hasattr(features[key], "keys"):
            example[key] = {
                inner: np.int64(0)
                for inner in features[key]
                if features[key][inner].dtype == np.int64
            }
    facts = corpora._facts(example, features)
    assert singer_of(facts)
    assert song_of(facts)
