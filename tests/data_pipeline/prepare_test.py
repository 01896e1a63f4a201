"""From recordings to datasets: what is in them, and what happens when it goes wrong."""

import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import prepare, schema
from svc_jax import audio_files, weights
from svc_jax.errors import UserError
from svc_jax.features import Extracted, FrozenParams
from svc_jax.geometry import FrameGeometry
from svc_jax.types import Features

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRID = FrameGeometry()


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def touch(folder, *names: str) -> pathlib.Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def tone(seconds: float, hz: float = 220.0, sample_rate: int = 16_000) -> np.ndarray:
    """Harmonics that a pitch tracker hears as `hz`."""
    turns = hz * np.arange(round(seconds * sample_rate)) / sample_rate
    return sum(0.3 / k * np.sin(2 * np.pi * k * turns) for k in range(1, 6))


def files_of(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def examples_of(folder) -> dict[str, list[dict]]:
    """Every split's examples, as tensorflow-datasets alone reads them."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    return {
        split: list(tfds.as_numpy(builder.as_dataset(split=split)))
        for split, info in builder.info.splits.items()
        if info.num_examples
    }


@pytest.fixture(scope="module")
def examples(dataset) -> dict[str, list[dict]]:
    with pytest.MonkeyPatch.context() as patch:
        # Nobody needs our code to open a dataset.
        for name in list(sys.modules):
            if name.split(".")[0] in ("svc_jax", "data_pipeline", "configs"):
                patch.setitem(sys.modules, name, None)
        return examples_of(dataset)


def by_recording(examples) -> dict[str, list[dict]]:
    """Records in the order of their positions, by the name of the recording."""
    found = {}
    for example in itertools.chain(*examples.values()):
        found.setdefault(example["recording"].decode(), []).append(example)
    return {k: sorted(v, key=lambda e: e["position"]) for k, v in found.items()}


# Finding recordings.


def splits_of(folder, valid: float) -> dict[str, str]:
    return {s.name: s.split for s in prepare.find_sources(folder, valid)}


def test_a_folder_is_a_singer(tmp_path):
    touch(tmp_path, "bo/1.wav", "bo/album/2.flac", "al/3.mp3", "al/.4.wav", ".x/5.wav")
    touch(tmp_path, "stray.wav", "al/words.txt")
    sources = prepare.find_sources(tmp_path, 0.0)
    assert [(s.singer, s.name, s.path, s.split) for s in sources] == [
        ("al", "al/3.mp3", tmp_path / "al/3.mp3", "train"),
        ("bo", "bo/1.wav", tmp_path / "bo/1.wav", "train"),
        ("bo", "bo/album/2.flac", tmp_path / "bo/album/2.flac", "train"),
    ]


@pytest.mark.parametrize(
    ("count", "valid", "held_out"),
    [(1, 0.5, 0), (2, 0.05, 1), (10, 0.05, 1), (40, 0.1, 4), (5, 0.0, 0), (5, 1.0, 4)],
)
def test_a_share_of_each_singers_recordings_is_held_out(
    tmp_path, count, valid, held_out
):
    touch(tmp_path, *(f"{singer}/{n}.wav" for singer in "ab" for n in range(count)))
    splits = splits_of(tmp_path, valid)
    for singer in "ab":
        own = [split for name, split in splits.items() if name.startswith(singer)]
        assert own.count("validation") == held_out
        assert own.count("train") == count - held_out


def test_splits_follow_from_the_names_and_adding_moves_few(tmp_path):
    names = [f"a/{n:02d}.wav" for n in range(60)]
    before = splits_of(touch(tmp_path / "x", *names), 0.1)
    assert splits_of(touch(tmp_path / "y", *names[::-1], "b/1.wav"), 0.1).items() > (
        before.items()
    )
    after = splits_of(touch(tmp_path / "x", *(f"a/+{n}.wav" for n in range(20))), 0.1)
    moved = [name for name in names if before[name] != after[name]]
    assert len(moved) <= 4
    # Not simply the first or the last ones.
    held_out = [n for n, name in enumerate(names) if before[name] == "validation"]
    assert max(held_out) - min(held_out) > 10


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "{}: holds no folders; put each singer's recordings in a folder"),
        (
            ["song.wav"],
            "{}: holds no folders; put each singer's recordings in a folder",
        ),
        (["a/x.wav", "b/words.txt"], "{}/b: holds no audio (.wav .flac .ogg "),
        (["a/.x.wav"], "{}/a: holds no audio (.wav .flac .ogg "),
    ],
)
def test_folders_without_singers_or_audio_are_refused(tmp_path, names, said):
    touch(tmp_path, *names)
    assert refusal(prepare.find_sources, tmp_path, 0.1).startswith(
        said.format(tmp_path)
    )


def test_missing_folder_of_recordings_is_refused(tmp_path):
    line = refusal(prepare.find_sources, tmp_path / "x", 0.1)
    assert line == f"{tmp_path / 'x'}: no such folder of recordings; check --input."


# Cutting recordings into records.


@settings(max_examples=40)
@given(num_asr_frames=st.one_of(st.integers(50, 3000), st.integers(495, 505)))
def test_records_cover_a_recording_in_even_parts_of_at_most_10_s(num_asr_frames):
    samples, frames = 320 * num_asr_frames, 5 * num_asr_frames
    audio, frame = np.arange(samples, dtype=np.float32), np.arange(frames)
    extracted = Extracted(
        Features(
            64.0 * frame,
            -64.0 * frame,
            (np.arange(num_asr_frames)[:, None] % [500, 7]).astype(np.float32),
        ),
        frame / frames,
        np.arange(6.0).reshape(3, 2),
    )
    records = list(
        prepare.to_records(audio, extracted, GRID, singer_id=3, recording="a/b.wav")
    )
    lengths = [record["audio"].size for record in records]
    assert max(lengths) <= 160_000
    assert max(lengths) - min(lengths) <= 320
    assert len(records) == 1 or min(lengths) > 79_000
    position = 0
    for record in records:
        assert record["position"] == record["audio"][0] == position
        position += record["audio"].size
        np.testing.assert_array_equal(record["f0_hz"], record["audio"][::64])
        assert (record["singer_id"], record["recording"]) == (3, "a/b.wav")
        np.testing.assert_array_equal(record["asr_stats"], extracted.asr_stats)
        assert record["asr_features"].dtype == np.float16

    def joined(name):
        return np.concatenate([record[name] for record in records])

    np.testing.assert_array_equal(joined("audio"), audio)
    np.testing.assert_array_equal(joined("f0_hz"), extracted.features.f0_hz)
    np.testing.assert_array_equal(joined("loudness_db"), extracted.features.loudness_db)
    np.testing.assert_array_equal(joined("f0_confidence"), extracted.f0_confidence)
    np.testing.assert_array_equal(
        joined("asr_features"), extracted.features.asr_features
    )


# Datasets.


def test_a_dataset_opens_without_our_code_and_has_the_contracts_features(examples):
    assert set(examples) == {"train", "validation"}
    for example in itertools.chain(*examples.values()):
        assert example.keys() == schema.FEATURES.keys()
        sizes = {"asr_size": 12}  # axes that are named alike are as long
        for name, (axes, dtype) in schema.FEATURES.items():
            if dtype == "str":
                continue
            assert example[name].dtype == dtype, name
            assert example[name].ndim == len(axes), name
            for axis, size in zip(axes, example[name].shape, strict=True):
                assert sizes.setdefault(axis, size) == size or axis == size, name
        assert sizes["samples"] == 64 * sizes["frames"] == 320 * sizes["asr_frames"]


def test_records_are_the_whole_of_each_recording(examples, recordings):
    found = by_recording(examples)
    paths = audio_files.find(recordings)
    assert set(found) == {p.relative_to(recordings).as_posix() for p in paths}
    for name, records in found.items():
        pcm, _ = soundfile.read(recordings / name, dtype="float32")
        audio = np.concatenate([record["audio"] for record in records])
        assert 0 <= audio.size - pcm.size < 320
        np.testing.assert_array_equal(audio[: pcm.size], pcm)
        assert not audio[pcm.size :].any()
        ends = np.cumsum([record["audio"].size for record in records])
        assert [record["position"] for record in records] == [0, *ends[:-1]]
        assert max(record["audio"].size for record in records) <= 160_000
    assert len(found["bass/album/long.wav"]) == 2


def test_features_are_those_of_the_extractor(examples, recordings, wav2letter_file):
    extractor, used = prepare.frozen_networks("yin", 160, None, wav2letter_file, "wide")
    frozen = FrozenParams(None, used["wav2letter"].params)
    for name, records in by_recording(examples).items():
        pcm, _ = soundfile.read(recordings / name, dtype="float32")
        pcm = np.pad(pcm, (0, -pcm.size % 320))
        (own,) = extractor.extract_recordings(frozen, [pcm])
        for feature, expected in (
            ("f0_hz", own.features.f0_hz),
            ("loudness_db", own.features.loudness_db),
            ("f0_confidence", own.f0_confidence),
            ("asr_features", own.features.asr_features.astype(np.float16)),
        ):
            joined = np.concatenate([record[feature] for record in records])
            np.testing.assert_array_equal(joined, expected, err_msg=feature)
        for record in records:  # over the recording, not over the record
            np.testing.assert_array_equal(record["asr_stats"], own.asr_stats)


def test_splits_are_by_recording(examples, recordings):
    expected = splits_of(recordings, 0.05)
    found = {
        example["recording"].decode(): split
        for split, part in examples.items()
        for example in part
    }
    assert found == expected
    assert set(found.values()) == {"train", "validation"}


def test_the_card_has_each_singers_range_and_minutes(dataset, examples, recordings):
    card = schema.Card.read(dataset)
    assert [singer.name for singer in card.singers] == ["alto", "bass"]
    for number, singer in enumerate(card.singers):
        own = [
            record
            for name, records in by_recording(examples).items()
            if name.startswith(singer.name)
            for record in records
        ]
        assert {int(record["singer_id"]) for record in own} == {number}
        f0_hz = np.concatenate([record["f0_hz"] for record in own]).astype(np.float64)
        f0_hz = f0_hz[f0_hz > 0]
        assert singer.mean_f0_hz == pytest.approx(np.mean(f0_hz), rel=1e-9)
        assert singer.low_f0_hz == pytest.approx(np.percentile(f0_hz, 1), rel=1e-6)
        assert singer.high_f0_hz == pytest.approx(np.percentile(f0_hz, 99), rel=1e-6)
        paths = audio_files.find(recordings / singer.name)
        seconds = sum(soundfile.info(path).duration for path in paths)
        assert singer.minutes == pytest.approx(seconds / 60)
    alto, bass = card.singers
    assert alto.mean_f0_hz > 2 * bass.mean_f0_hz


def test_the_card_says_what_made_the_features(dataset, wav2letter_file):
    card = schema.Card.read(dataset)
    assert (card.sample_rate, card.hop_length, card.asr_hop_length) == (16_000, 64, 320)
    assert card.f0 == {"network": "yin", "sha256": None, "hop_length": 160}
    assert card.asr == {
        "network": "wav2letter",
        "sha256": hashlib.sha256(wav2letter_file.read_bytes()).hexdigest(),
        "layer": "wide",
        "size": 12,
    }
    assert card.version == schema.VERSION


def test_the_networks_that_made_the_features_are_kept(dataset, wav2letter_file):
    kept = weights.wav2letter(dataset / "frozen" / "wav2letter.safetensors")
    given_ = weights.wav2letter(wav2letter_file)
    assert kept.config == given_.config
    assert kept.sha256 == given_.sha256
    assert [p.name for p in (dataset / "frozen").iterdir()] == [
        "wav2letter.safetensors"
    ]


def test_singers_are_described_by_all_their_voiced_frames():
    voiced = {
        "b": [np.array([100.0, 300.0], np.float32), np.array([], np.float32)],
        "a": [np.full(10, 440.0, np.float32), np.full(30, 220.0, np.float32)],
    }
    tally = prepare.Tally(voiced, {"a": 2.0, "b": 0.5}, {})
    b, a = prepare.describe_singers(tally)
    assert a == schema.Singer("a", 275.0, 220.0, 440.0, 2.0)
    assert (b.name, b.mean_f0_hz, b.minutes) == ("b", 200.0, 0.5)
    assert (b.low_f0_hz, b.high_f0_hz) == pytest.approx((102, 298))


# Odd and bad recordings.


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> pathlib.Path:
    """Recordings of one singer, some of which cannot be used."""
    folder = tmp_path_factory.mktemp("odd") / "alto"
    folder.mkdir()
    stereo = np.stack([tone(0.9, 330, 44_100)] * 2, axis=1)
    soundfile.write(folder / "stereo.flac", stereo, 44_100, subtype="PCM_24")
    soundfile.write(folder / "short.wav", tone(0.1), 16_000, subtype="DOUBLE")
    soundfile.write(folder / "one_sample.wav", [0.5], 48_000)
    soundfile.write(folder / "silent.wav", np.zeros(1000), 16_000)
    (folder / "words.flac").write_text("no audio")
    return folder.parent


def test_odd_recordings_are_taken_and_bad_ones_left_out_aloud(
    odd, tmp_path, wav2letter_file, start
):
    output = tmp_path / "new" / "choir"
    code, out, err = start(
        prepare,
        f"--input={odd}",
        f"--output={output}",
        f"--wav2letter={wav2letter_file}",
        "--f0=yin",
        "--asr_layer=hidden",
        "--valid=0",
    )
    assert code == 0
    silent, words = err.splitlines()
    alto = odd / "alto"
    assert silent.startswith(f"left out: {alto / 'silent.wav'}: every sample is zero;")
    assert words.startswith(f"left out: {alto / 'words.flac'}: not readable as audio")
    summary, line = out.splitlines()
    assert summary == f"{output}: 1 singers, 2 files left out"
    assert line.split()[:2] == ["alto", "0.0"]

    found = by_recording(examples_of(output))
    assert {name: records[0]["audio"].size for name, records in found.items()} == {
        "alto/stereo.flac": 16_000,  # at least a training segment
        "alto/short.wav": 16_000,
        "alto/one_sample.wav": 16_000,
    }
    (record,) = found["alto/stereo.flac"]
    own = audio_files.read(odd / "alto" / "stereo.flac", 16_000).audio
    np.testing.assert_array_equal(record["audio"][: own.size], own)
    assert not record["audio"][own.size :].any()
    middle = record["f0_hz"][50:175]
    np.testing.assert_allclose(middle, 330, rtol=0.005)
    card = schema.Card.read(output)
    assert card.singers[0].minutes == pytest.approx((0.9 + 0.1 + 1 / 16_000) / 60)
    assert card.asr["layer"] == "hidden"
    assert record["asr_features"].shape == (50, card.asr["size"]) == (50, 8)


def test_a_singer_without_a_usable_recording_stops_and_leaves_nothing(
    odd, tmp_path, wav2letter_file
):
    shutil.copytree(odd, tmp_path / "recordings")
    bad = tmp_path / "recordings" / "bass" / "a.wav"
    bad.parent.mkdir()
    bad.write_bytes(b"")
    line = refusal(
        prepare.prepare,
        tmp_path / "recordings",
        tmp_path / "choir",
        f0="yin",
        wav2letter_path=wav2letter_file,
    )
    assert line == (
        f"singer 'bass': no recording is usable ({bad}: is empty; record it again.)"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["recordings"]


def test_a_singer_without_pitch_stops_and_leaves_nothing(tmp_path, wav2letter_file):
    hiss = np.random.default_rng(0).normal(0, 0.1, 8000)
    (tmp_path / "recordings" / "wind").mkdir(parents=True)
    soundfile.write(tmp_path / "recordings" / "wind" / "a.wav", hiss, 16_000)
    line = refusal(
        prepare.prepare,
        tmp_path / "recordings",
        tmp_path / "choir",
        f0="yin",
        wav2letter_path=wav2letter_file,
    )
    assert line.startswith("singer 'wind': no pitch was heard in 0.0 minutes; record")
    assert [p.name for p in tmp_path.iterdir()] == ["recordings"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_exists_is_left_alone(odd, tmp_path, wav2letter_file, kind):
    output = tmp_path / "choir"
    mine = output / "mine.txt" if kind == "folder" else output
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    line = refusal(prepare.prepare, odd, output, f0="yin", wav2letter_path="none")
    assert line.startswith(f"{output}: exists and is not empty; remove it or name")
    assert mine.read_text() == "mine"
    assert len(files_of(tmp_path)) == 1


def test_missing_weights_are_refused_before_any_work(odd, tmp_path):
    missing = tmp_path / "wav2letter.safetensors"
    line = refusal(
        prepare.prepare, odd, tmp_path / "x", f0="yin", wav2letter_path=missing
    )
    assert str(missing) in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--valid=1.5", "flag --valid=1.5: 1.5 is not"),
        ("--f0_hop=0", "flag --f0_hop=0: 0 is not"),
        ("--f0=swift", "flag --f0=swift: value should be one of <crepe-tiny|"),
        ("--asr_layer=deep", "flag --asr_layer=deep: value should be one of <hidden|"),
    ],
)
def test_flags_out_of_range_are_refused(start, flag, said):
    code, _, err = start(prepare, "--input=x", "--output=y", flag)
    assert code == 2
    assert err.startswith(f"error: {said}")


# Being killed.


def test_a_killed_preparation_leaves_no_dataset_and_a_second_one_succeeds(
    dataset, recordings, tmp_path, wav2letter_file
):
    program = (
        "import os, sys\n"
        "from data_pipeline import prepare\n"
        "to_records, done = prepare.to_records, []\n"
        "def to_records_or_die(*arguments, **options):\n"
        "    done.append(1)\n"
        "    if len(done) == 4:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return to_records(*arguments, **options)\n"
        "prepare.to_records = to_records_or_die\n"
        "source, output, wav2letter = sys.argv[1:]\n"
        "prepare.prepare(source, output, f0='yin', wav2letter_path=wav2letter)\n"
    )
    output = tmp_path / "choir"
    child = subprocess.run(
        [sys.executable, "-c", program, recordings, output, wav2letter_file],
        check=False,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -9, child.stderr
    assert not output.exists()
    assert list(tmp_path.iterdir())  # it had begun
    prepare.prepare(recordings, output, f0="yin", wav2letter_path=wav2letter_file)
    assert list(tmp_path.iterdir()) == [output]
    # Preparing is deterministic, to the byte.
    assert files_of(output) == files_of(dataset)


def test_an_empty_folder_may_be_the_output(odd, tmp_path, wav2letter_file):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    refused = prepare.prepare(
        odd, tmp_path, f0="yin", wav2letter_path=wav2letter_file, valid=0
    )
    assert len(refused) == 2
    assert json.loads((tmp_path / "dataset_info.json").read_text())["name"] == "singing"


def test_crepes_weights_may_be_named(wav2letter_file, test_data):
    path = test_data / "weights" / "model-tiny.h5.bz2"
    _, found = prepare.frozen_networks("crepe-tiny", 160, path, wav2letter_file, "wide")
    assert found["crepe"].source == str(path)
    with pytest.raises(UserError, match=r"no/such\.h5"):
        prepare.frozen_networks(
            "crepe-tiny", 160, "no/such.h5", wav2letter_file, "wide"
        )
