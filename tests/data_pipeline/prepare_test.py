"""From recordings to datasets: what is in them, and what happens when it goes wrong."""

import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from data_pipeline import (
    extraction,
    input_pipeline,
    listening,
    prepare,
    report,
    schema,
    sources,
)
from svc_jax import audio_files, weights
from svc_jax.errors import UserError
from svc_jax.features import FrozenParams
from svc_jax.geometry import FrameGeometry

ROOT = pathlib.Path(__file__).resolve().parents[2]
# XLA splits sums by the larger number, of cores or of devices: on a machine with one
# core, processes agree to the byte only if they have as many devices as this one.
AS_MANY_DEVICES = {"JAX_NUM_CPU_DEVICES": "8"}


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    recipe = extraction.Recipe(f0="yin", wav2letter_path=wav2letter_file)
    extractor, used = extraction.frozen_networks(recipe)
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
    planned = sources.assign_splits(sources.find([recordings]), 0.05)
    expected = {source.name: source.split for source in planned}
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


def test_every_record_is_in_the_index(dataset, examples):
    for split, part in examples.items():
        with np.load(dataset / "index" / f"{split}-00000.npz") as index:
            for name, values in index.items():
                assert len(values) == len(part), name
            for number, example in enumerate(part):
                assert index["asr_frames"][number] == len(example["asr_features"])
                assert index["singer_id"][number] == example["singer_id"]
                voiced = example["f0_hz"][example["f0_hz"] > 0]
                assert index["f0_hz"][number] == pytest.approx(voiced.mean(), rel=1e-6)


def test_the_report_lists_every_recording_with_its_split(dataset, examples, recordings):
    table = report.read_table(dataset)
    assert [row["recording"] for row in table] == sorted(by_recording(examples))
    split_of = {
        example["recording"].decode(): split
        for split, part in examples.items()
        for example in part
    }
    for row in table:
        assert row["split"] == split_of[row["recording"]]
        assert row["verdict"] == "used"
        info = soundfile.info(recordings / row["recording"])
        assert float(row["seconds"]) == pytest.approx(info.duration, abs=1e-3)
        assert 0 <= float(row["kept_seconds"]) - info.duration < 0.02
        assert (row["sample_rate"], row["format"]) == ("16000", "PCM_16")


def test_the_page_needs_nothing_beside_itself(dataset):
    page = (dataset / "report.html").read_text()
    for outside in ("http", "src=", "href=", "@import", "url("):
        assert outside not in page
    for name in ("Dataset choir", "alto", "bass", "<svg"):
        assert name in page


# Odd and bad recordings.


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> pathlib.Path:
    """Recordings of one singer, some of which cannot be used."""
    folder = tmp_path_factory.mktemp("odd") / "alto"
    folder.mkdir()
    stereo = np.stack([tone(0.9, 330, 44_100)] * 2, axis=1)
    soundfile.write(folder / "stereo.flac", stereo, 44_100, subtype="PCM_24")
    soundfile.write(folder / "short.wav", tone(0.2), 16_000, subtype="DOUBLE")
    soundfile.write(folder / "one_sample.wav", [0.5], 48_000)
    soundfile.write(folder / "silent.wav", np.zeros(1000), 16_000)
    (folder / "words.flac").write_text("no audio")
    return folder.parent


def prepared(source, output, wav2letter_file, **options) -> list[str]:
    return prepare.prepare(
        source, output, f0="yin", wav2letter_path=wav2letter_file, **options
    )


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
    one, silent, words = err.splitlines()
    assert one == "left out: alto/one_sample.wav: too short: 0.00 s"
    assert silent == "left out: alto/silent.wav: silent: every sample is zero"
    assert words.startswith("left out: alto/words.flac: unreadable: not readable as")
    summary, verdicts, line = out.splitlines()
    assert summary == f"{output}: 1 singers; report.tsv says more"
    assert verdicts.split(", ")[:3] == [
        "  1 recordings used",
        "1 used with a warning",
        "3 refused",
    ]
    assert "1 short" in verdicts
    assert line.split()[:2] == ["alto", "0.0"]

    found = by_recording(examples_of(output))
    assert {name: records[0]["audio"].size for name, records in found.items()} == {
        "alto/stereo.flac": 16_000,  # at least a training segment
        "alto/short.wav": 16_000,
    }
    (record,) = found["alto/stereo.flac"]
    own = audio_files.read(odd / "alto" / "stereo.flac", 16_000).audio
    np.testing.assert_array_equal(record["audio"][: own.size], own)
    assert not record["audio"][own.size :].any()
    middle = record["f0_hz"][50:175]
    np.testing.assert_allclose(middle, 330, rtol=0.005)
    card = schema.Card.read(output)
    assert card.singers[0].minutes == pytest.approx((0.9 + 0.2) / 60)
    assert card.asr["layer"] == "hidden"
    assert record["asr_features"].shape == (50, card.asr["size"]) == (50, 8)


def test_a_singer_without_a_usable_recording_is_left_out(
    odd, tmp_path, wav2letter_file
):
    bad = tmp_path / "more" / "bass" / "a.wav"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"")
    output = tmp_path / "choir"
    refused = prepared([odd, tmp_path / "more"], output, wav2letter_file)
    assert refused[-1] == "bass/a.wav: empty: holds no samples"
    assert [s.name for s in schema.Card.read(output).singers] == ["alto"]


def test_without_anything_usable_nothing_is_left(tmp_path, wav2letter_file, start):
    hiss = np.random.default_rng(0).normal(0, 0.1, 8000)
    path = tmp_path / "recordings" / "wind" / "a.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, hiss, 16_000)
    code, out, err = start(
        prepare,
        f"--input={tmp_path / 'recordings'}",
        f"--output={tmp_path / 'choir'}",
        f"--wav2letter={wav2letter_file}",
        "--f0=yin",
    )
    assert (code, out) == (2, "")
    assert err.startswith(f"error: none of 1 recordings is usable; the first, {path},")
    assert "unvoiced: " in err
    assert {p.name for p in tmp_path.iterdir()} == {"recordings", ".features"}


def test_strict_refuses_what_has_a_warning(odd, tmp_path, wav2letter_file):
    refused = prepared(odd, tmp_path / "choir", wav2letter_file, strict=True)
    assert "alto/short.wav: short: 0.20 s" in refused
    found = by_recording(examples_of(tmp_path / "choir"))
    assert list(found) == ["alto/stereo.flac"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_exists_is_left_alone(odd, tmp_path, wav2letter_file, kind):
    output = tmp_path / "choir"
    mine = output / "mine.txt" if kind == "folder" else output
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    line = refusal(prepare.prepare, odd, output, f0="yin", wav2letter_path="none")
    assert line.startswith(f"{output}: exists and is not empty; remove it, name ")
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
        ("--normalize=3", "flag --normalize=3: 3.0 is not"),
        (
            "--hop_length=100",
            "--sample_rate, --hop_length: asr_hop_length 320 must be a m",
        ),
        ("--corpus=opera", "--corpus opera: unknown; choose one of nus48e, "),
        ("--tfds=vctk", "name either recordings with --input, or a dataset of tens"),
    ],
)
def test_flags_out_of_range_are_refused(start, flag, said):
    code, _, err = start(prepare, "--input=x", "--output=y", flag)
    assert code == 2
    assert err.startswith(f"error: {said}")


def test_input_and_output_must_be_given(start, recordings):
    code, _, err = start(prepare, "--output=y")
    assert (code, err[:45]) == (2, "error: name either recordings with --input, o")
    code, _, err = start(prepare, f"--input={recordings}")
    assert (code, err[:28]) == (2, "error: --output must be give")


def test_a_dry_run_says_what_it_would_do_and_does_nothing(start, odd, tmp_path):
    arguments = [f"--input={odd}", f"--output={tmp_path / 'choir'}", "--dry_run"]
    code, out, err = start(prepare, *arguments)
    assert (code, err) == (0, "")
    plan, singer = out.splitlines()
    assert plan == "5 recordings of 1 singers, 0.00 h; 1 for validation, 1 not readable"
    assert singer.split() == ["alto", "0.0", "min"]
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_may_be_the_output(odd, tmp_path, wav2letter_file):
    output = tmp_path / "choir"
    output.mkdir()
    assert len(prepared(odd, output, wav2letter_file, valid=0)) == 3
    assert json.loads((output / "dataset_info.json").read_text())["name"] == "singing"


def test_crepes_weights_may_be_named(wav2letter_file, test_data):
    path = test_data / "weights" / "model-tiny.h5.bz2"
    recipe = extraction.Recipe(crepe_path=path, wav2letter_path=wav2letter_file)
    _, found = extraction.frozen_networks(recipe)
    assert found["crepe"].source == str(path)
    recipe = extraction.Recipe(crepe_path="no/such.h5", wav2letter_path=wav2letter_file)
    with pytest.raises(UserError, match=r"no/such\.h5"):
        extraction.frozen_networks(recipe)


def test_duplicates_are_used_once(recordings, tmp_path, wav2letter_file):
    pcm, rate = soundfile.read(recordings / "alto" / "one.wav", dtype="int16")
    source = tmp_path / "in" / "alto"
    source.mkdir(parents=True)
    soundfile.write(source / "b.flac", pcm, rate)
    soundfile.write(source / "c.wav", pcm, rate)
    (source / "a.wav").symlink_to(recordings / "alto" / "one.wav")
    soundfile.write(source / "d.wav", pcm[:-1], rate)
    refused = prepared(tmp_path / "in", tmp_path / "choir", wav2letter_file)
    assert refused == [
        "alto/b.flac: duplicate: of alto/a.wav",
        "alto/c.wav: duplicate: of alto/a.wav",
    ]


def test_loudness_is_normalised_on_request(recordings, tmp_path, wav2letter_file):
    import pyloudnorm

    prepared(
        recordings / "alto" / "..", tmp_path / "choir", wav2letter_file, normalize=-23.0
    )
    assert schema.Card.read(tmp_path / "choir").normalize_lufs == -23.0
    meter = pyloudnorm.Meter(16_000)
    for name, records in by_recording(examples_of(tmp_path / "choir")).items():
        size = soundfile.info(recordings / name).frames
        audio = np.concatenate([record["audio"] for record in records])[:size]
        loudness = meter.integrated_loudness(audio.astype(np.float64))
        assert loudness == pytest.approx(-23, abs=0.1)


def test_pauses_are_left_out_and_the_rest_stands_where_it_stood(
    tmp_path, wav2letter_file
):
    pcm = np.concatenate([np.zeros(32_000), tone(3), np.zeros(48_000), tone(2, 330)])
    source = tmp_path / "in" / "alto" / "a.wav"
    source.parent.mkdir(parents=True)
    soundfile.write(source, pcm, 16_000, subtype="FLOAT")
    prepared(tmp_path / "in", tmp_path / "choir", wav2letter_file)
    records = by_recording(examples_of(tmp_path / "choir"))["alto/a.wav"]
    assert len(records) == 2
    pcm = pcm.astype(np.float32)
    for record, hz in zip(records, (220, 330), strict=True):
        start = int(record["position"])
        stop = start + record["audio"].size
        np.testing.assert_array_equal(record["audio"], pcm[start:stop])
        voiced = record["f0_hz"][record["f0_hz"] > 0]
        assert np.median(voiced) == pytest.approx(hz, rel=0.005)
    assert float(report.read_table(tmp_path / "choir")[0]["kept_seconds"]) < 6


def test_a_recording_that_is_long_is_prepared_block_by_block(
    tmp_path, wav2letter_file, monkeypatch
):
    whole, blocks = tmp_path / "whole", tmp_path / "blocks"
    source = tmp_path / "in" / "alto" / "a.wav"
    source.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    notes = [tone(1.5, hz) * rng.uniform(0.2, 1) for hz in rng.uniform(150, 400, 9)]
    soundfile.write(source, np.concatenate(notes), 16_000)
    prepared(tmp_path / "in", whole, wav2letter_file, cache_dir=tmp_path / "1")
    monkeypatch.setattr(listening, "LONG_SECONDS", 5)
    prepared(tmp_path / "in", blocks, wav2letter_file, cache_dir=tmp_path / "2")
    expected = by_recording(examples_of(whole))["alto/a.wav"]
    found = by_recording(examples_of(blocks))["alto/a.wav"]
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["audio"], other["audio"])
        for name, tolerance in {
            "f0_hz": 0.01,
            "loudness_db": 1e-3,
            "asr_features": 5e-3,
        }.items():
            np.testing.assert_allclose(one[name], other[name], atol=tolerance)


def test_another_geometry_is_prepared_on_its_own_grids(
    recordings, tmp_path, wav2letter_file, start
):
    code, _, err = start(
        prepare,
        f"--input={recordings}",
        f"--output={tmp_path / 'choir'}",
        f"--wav2letter={wav2letter_file}",
        "--f0=yin",
        "--hop_length=160",
    )
    assert (code, err) == (0, "")
    card = schema.Card.read(tmp_path / "choir")
    assert (card.sample_rate, card.hop_length, card.asr_hop_length) == (16000, 160, 320)
    for record in itertools.chain(
        *by_recording(examples_of(tmp_path / "choir")).values()
    ):
        assert record["audio"].size == 160 * record["f0_hz"].size


def test_crops_of_audio_and_features_stay_aligned(tmp_path, wav2letter_file):
    rate, change = 16_000, 2.5  # s, where the pitch steps
    size = 5 * rate
    pulses = np.zeros(size, np.float32)
    low, high = (
        range(0, round(change * rate), 100),
        range(round(change * rate), size, 50),
    )
    pulses[[*low, *high]] = 0.5  # 160 Hz, then 320 Hz
    source = tmp_path / "in" / "alto" / "a.wav"
    source.parent.mkdir(parents=True)
    soundfile.write(source, pulses, rate, subtype="FLOAT")
    prepared(tmp_path / "in", tmp_path / "choir", wav2letter_file)
    batches = input_pipeline.train_batches(
        tmp_path / "choir", FrameGeometry(), batch_size=8, seed=0
    )
    checked = 0
    for batch in itertools.islice(batches, 6):
        for audio, f0_hz in zip(batch["audio"], batch["f0_hz"], strict=True):
            at = np.flatnonzero(audio)
            spacing = np.diff(at)
            steps = np.flatnonzero(np.diff(spacing))
            expected = rate / spacing[np.searchsorted(at[1:-1], np.arange(250) * 64)]
            away = np.ones(250, bool)
            if steps.size:
                checked += 1
                near = at[steps[0] + 1] // 64
                away[max(0, near - 6) : near + 7] = False  # the tracker's window
            np.testing.assert_allclose(f0_hz[away], expected[away], rtol=0.02)
    assert checked > 5


@pytest.mark.proof
def test_an_hour_is_prepared_in_bounded_memory(tmp_path, wav2letter_file):
    source = tmp_path / "in" / "alto" / "hour.flac"
    source.parent.mkdir(parents=True)
    with soundfile.SoundFile(source, "w", 44_100, 2) as file:
        for hz in np.linspace(150, 450, 180):
            part = np.concatenate([tone(17, hz, 44_100), np.zeros(3 * 44_100)])
            file.write(np.stack([part, 0.5 * part], 1) * 0.5)
    child = start_preparing(tmp_path / "in", tmp_path, wav2letter_file)
    _, child.returncode, usage = os.wait4(child.pid, 0)
    child.stderr.close()
    assert child.returncode == 0
    gigabytes = usage.ru_maxrss / 1e6
    print(f"an hour of stereo at 44.1 kHz: {gigabytes:.2f} GB at most")
    assert gigabytes < 1.5
    (row,) = report.read_table(tmp_path / "choir")
    assert row["seconds"] == "3600.000"
    assert 180 * 17 < float(row["kept_seconds"]) < 180 * 18


# The cache.


def test_a_second_run_takes_everything_from_the_cache_and_is_the_same_to_the_byte(
    recordings, dataset, tmp_path, wav2letter_file, monkeypatch
):
    def forbidden(*arguments):
        raise AssertionError("heard again")

    monkeypatch.setattr(extraction, "_listen", forbidden)
    cache = dataset.parent / ".features"
    prepared(recordings, tmp_path / "choir", wav2letter_file, cache_dir=cache)
    assert files_of(tmp_path / "choir") == files_of(dataset)


def test_features_of_another_recipe_are_made_anew(
    recordings, dataset, tmp_path, wav2letter_file
):
    cache = tmp_path / "cache"
    shutil.copytree(dataset.parent / ".features", cache)
    before = len(list(cache.glob("*/*")))
    prepared(
        recordings, tmp_path / "c", wav2letter_file, cache_dir=cache, asr_layer="hidden"
    )
    assert len(list(cache.glob("*/*"))) == 2 * before


@pytest.mark.proof
def test_two_processes_make_the_same_dataset_to_the_byte(
    recordings, dataset, tmp_path, wav2letter_file, start
):
    code, _, err = start(
        prepare,
        f"--input={recordings}",
        f"--output={tmp_path / 'choir'}",
        f"--wav2letter={wav2letter_file}",
        "--f0=yin",
        "--workers=2",
        "--beam=--direct_running_mode=multi_processing",
    )
    assert (code, err) == (0, "")
    assert files_of(tmp_path / "choir") == files_of(dataset)


def test_a_job_server_and_a_worker_of_its_own_make_the_same_dataset_to_the_byte(
    recordings, dataset, tmp_path, wav2letter_file, start, monkeypatch
):
    # Beam starts it as `python`; all that it knows of us has travelled.
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for name, value in AS_MANY_DEVICES.items():
        monkeypatch.setenv(name, value)
    code, out, _ = start(
        prepare,
        f"--input={recordings}",
        f"--output={tmp_path / 'choir'}",
        f"--wav2letter={wav2letter_file}",
        "--f0=yin",
        "--runner=PortableRunner",
        "--beam=--job_endpoint=embed",
        "--beam=--environment_type=LOOPBACK",
        "--beam=--experiments=use_loopback_process_worker",
    )
    assert code == 0
    assert out.startswith(f"{tmp_path / 'choir'}: 2 singers; ")
    assert files_of(tmp_path / "choir") == files_of(dataset)
    assert {path.name for path in tmp_path.iterdir()} == {"choir", ".features"}


@pytest.mark.parametrize("runner", ["FnApiRunner", "BundleBasedDirectRunner"])
def test_local_runners_make_the_same_dataset_to_the_byte(
    recordings, dataset, tmp_path, wav2letter_file, runner
):
    cache = dataset.parent / ".features"
    prepared(
        recordings, tmp_path / "c", wav2letter_file, cache_dir=cache, runner=runner
    )
    found, expected = files_of(tmp_path / "c"), files_of(dataset)
    del found["report.html"], expected["report.html"]  # it has the dataset's name
    assert found == expected


# Adding singers.


@pytest.fixture
def grown(recordings, tmp_path, wav2letter_file) -> pathlib.Path:
    """A dataset of bass, to which alto is added."""
    for singer in ("alto", "bass"):
        shutil.copytree(recordings / singer, tmp_path / f"of_{singer}" / singer)
    output = tmp_path / "choir"
    prepared(tmp_path / "of_bass", output, wav2letter_file)
    prepared(tmp_path / "of_alto", output, wav2letter_file, append=True)
    return output


def test_a_singer_is_added_without_touching_the_others(grown, examples, dataset):
    card, together = schema.Card.read(grown), schema.Card.read(dataset)
    assert card.singers == together.singers[::-1]
    expected = by_recording(examples)
    found = by_recording(examples_of(grown))
    assert found.keys() == expected.keys()
    for name, records in found.items():
        for record, other in zip(records, expected[name], strict=True):
            assert record["singer_id"] == 1 - other["singer_id"]
            np.testing.assert_array_equal(record["audio"], other["audio"])
            np.testing.assert_array_equal(record["f0_hz"], other["f0_hz"])
    table = report.read_table(grown)
    assert sorted(row["recording"] for row in table) == sorted(expected)
    assert len(list((grown / "index").iterdir())) == 4
    siblings = {p.name for p in grown.parent.iterdir()}
    assert siblings == {"choir", "of_alto", "of_bass", ".features"}


def test_what_does_not_fit_is_not_added(grown, tmp_path, wav2letter_file):
    before = files_of(grown)
    add = {"append": True, "f0": "yin", "wav2letter_path": wav2letter_file}
    line = refusal(prepare.prepare, tmp_path / "of_alto", grown, **add)
    assert "has the singer 'alto' already; give the new one another name" in line
    (tmp_path / "of_alto" / "alto").rename(tmp_path / "of_alto" / "new")
    line = refusal(
        prepare.prepare, tmp_path / "of_alto", grown, **add, asr_layer="hidden"
    )
    assert "its asr is {" in line
    line = refusal(
        prepare.prepare, tmp_path / "of_alto", grown, **add, file_format="array_record"
    )
    assert "its file_format is tfrecord, what would be added has array_record" in line
    # Its recordings are there, under the old name.
    line = refusal(prepare.prepare, tmp_path / "of_alto", grown, **add)
    assert "none of 3 recordings is usable" in line
    assert "duplicate: of alto/one.wav" in line
    line = refusal(prepare.prepare, tmp_path / "of_alto", tmp_path / "none", **add)
    assert "no dataset to add to; leave out --append" in line
    assert files_of(grown) == before


# Being killed.


def start_preparing(recordings, folder, weights_file) -> subprocess.Popen:
    """A process that prepares folder/choir, with folder/.features."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "data_pipeline.prepare", "--f0=yin"),
            *(f"--input={recordings}", f"--output={folder / 'choir'}"),
            f"--wav2letter={weights_file}",
        ],
        cwd=ROOT,
        env={**os.environ, **AS_MANY_DEVICES},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(child: subprocess.Popen) -> bool:
    """Kills a process as a power cut would; whether it was still running."""
    child.send_signal(signal.SIGKILL)
    _, err = child.communicate()
    assert child.returncode in (0, -signal.SIGKILL), err
    return child.returncode == -signal.SIGKILL


def prepare_again(recordings, folder, weights_file, dataset):
    """Prepares what a killed process left, which must be as if it never was killed."""
    output = folder / "choir"
    if not output.exists():
        child = start_preparing(recordings, folder, weights_file)
        _, err = child.communicate()
        assert child.returncode == 0, err
    assert files_of(output) == files_of(dataset)
    assert {path.name for path in folder.iterdir()} == {"choir", ".features"}


@pytest.mark.parametrize(
    "moment",
    [".features/*/*/summary.json", ".choir.partial/.singing-train*.partial"],
    ids=["a recording is heard", "a file is half-written"],
)
def test_a_killed_preparation_leaves_no_dataset_and_a_second_one_is_as_if_never_killed(
    recordings, dataset, tmp_path, wav2letter_file, moment
):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        child = start_preparing(recordings, folder, wav2letter_file)
        while child.poll() is None and not any(folder.glob(moment)):
            time.sleep(0.001)
        if kill(child) and not (folder / "choir").exists():
            break  # otherwise a busy machine looked again too late
    else:
        pytest.fail(f"five preparations were over before {moment} was seen")
    assert (folder / ".choir.partial").exists()
    prepare_again(recordings, folder, wav2letter_file, dataset)


@pytest.mark.proof
def test_killed_at_20_random_moments(recordings, dataset, tmp_path, wav2letter_file):
    began = time.monotonic()
    with start_preparing(recordings, tmp_path / "0", wav2letter_file) as child:
        _, err = child.communicate()
    assert child.returncode == 0, err
    seconds = time.monotonic() - began
    rng, killed = random.Random(0), 0
    for number in range(1, 21):
        folder = tmp_path / f"{number}"
        child = start_preparing(recordings, folder, wav2letter_file)
        time.sleep(seconds * rng.uniform(0.1, 1.0))
        killed += kill(child)
        prepare_again(recordings, folder, wav2letter_file, dataset)
    assert killed >= 15


def test_a_run_that_was_stopped_between_the_last_renames_is_mended(
    grown, tmp_path, wav2letter_file
):
    before = files_of(grown)
    grown.rename(grown.with_name(".choir.replaced"))
    line = refusal(prepared, tmp_path / "of_alto", grown, wav2letter_file)
    assert "exists and is not empty" in line
    assert files_of(grown) == before
