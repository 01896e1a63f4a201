"""Datasets as batches: records whose numbers tell where they stood."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest

from data_pipeline import input_pipeline, prepare, schema
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry
from svc_jax.types import Batch

GRID = FrameGeometry(segment_samples=640)  # two ASR frames
ASR_FRAMES = (2, 3, 8)  # of the records, in turn
STRIDE = 10_000  # from one record's first sample to the next one's
NUM_TRAIN, NUM_VALIDATION = 300, 5  # more than fit into one file


def record(number: int) -> dict:
    """A record of ramps: what stands at sample n is STRIDE * number + n."""
    num_asr_frames = ASR_FRAMES[number % len(ASR_FRAMES)]
    ramp = STRIDE * number + np.arange(320 * num_asr_frames, dtype=np.float32)
    asr_frame = np.arange(num_asr_frames)
    return {
        "audio": ramp,
        "f0_hz": ramp[::64],
        "f0_confidence": np.zeros(5 * num_asr_frames, np.float32),
        "loudness_db": -ramp[::64],
        # float16 holds whole numbers up to 2048.
        "asr_features": np.stack([0 * asr_frame + number, asr_frame], 1).astype("f2"),
        "asr_stats": np.full((3, 2), number, np.float32),
        "singer_id": number % 3,
        "recording": f"{number}",
        "position": 0,
    }


def write(folder, num_train: int, num_validation: int) -> pathlib.Path:
    folder.mkdir()
    writer = prepare.dataset_writer(folder, 2)
    numbers = range(num_train + num_validation)
    records = [record(number) for number in numbers]
    splits = {"train": records[:num_train], "validation": records[num_train:]}
    writer.add_examples({name: part for name, part in splits.items() if part})
    writer.close_all()
    singers = tuple(schema.Singer(name, 200, 100, 300, 1) for name in "abc")
    card = schema.Card(singers, 16_000, 64, 320, {"network": "yin"}, {"size": 2})
    card.write(folder)
    return folder


@pytest.fixture(scope="module")
def ramps(tmp_path_factory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("ramps") / "d", NUM_TRAIN, NUM_VALIDATION)


def batches(folder, count: int, **changes) -> list[dict]:
    arguments = {"batch_size": 20, "seed": 3, **changes}
    stream = input_pipeline.train_batches(folder, GRID, **arguments)
    return list(itertools.islice(stream, count))


def numbers(found: list[dict]) -> list[int]:
    """The records in batches, in order."""
    return [int(n) for batch in found for n in batch["asr_stats"][:, 0, 0]]


def starts(found: list[dict]) -> np.ndarray:
    """Where in their records the segments of batches start, in samples."""
    first = np.concatenate([batch["audio"][:, 0] for batch in found])
    return first - STRIDE * np.array(numbers(found))


def assert_same(found: list[dict], expected: list[dict]):
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Records.


def test_a_dataset_has_several_files(ramps):
    assert len(list(ramps.glob("*train.tfrecord*"))) == 2


def test_offsets_are_those_of_tensorflows_records(ramps):
    import tensorflow as tf

    for path in ramps.glob("*.tfrecord*"):
        content = path.read_bytes()
        offsets = input_pipeline.record_offsets(path)
        ours = [content[start : start + length] for start, length in offsets]
        assert ours == list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "empty").touch()
    assert input_pipeline.record_offsets(tmp_path / "empty").shape == (0, 2)


# Training.


def test_batches_have_the_fields_and_shapes_of_a_batch(ramps):
    (batch,) = batches(ramps, 1)
    assert set(batch) == {field.name for field in dataclasses.fields(Batch)}
    shapes = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert shapes == {
        "audio": ((20, 640), "float32"),
        "f0_hz": ((20, 10), "float32"),
        "loudness_db": ((20, 10), "float32"),
        "asr_features": ((20, 2, 2), "float32"),
        "asr_stats": ((20, 3, 2), "float32"),
        "singer_id": ((20,), "int32"),
    }


def test_crops_of_audio_and_features_are_of_the_same_place(ramps):
    for batch in batches(ramps, 15):
        audio, number = batch["audio"], batch["asr_stats"][:, 0, 0]
        start = audio[:, :1] - STRIDE * number[:, None]
        assert (start % 320 == 0).all()
        np.testing.assert_array_equal(audio, audio[:, :1] + np.arange(640))
        np.testing.assert_array_equal(batch["f0_hz"], audio[:, ::64])
        np.testing.assert_array_equal(batch["loudness_db"], -audio[:, ::64])
        np.testing.assert_array_equal(
            batch["asr_features"][..., 1], start / 320 + np.arange(2)
        )
        np.testing.assert_array_equal(batch["asr_features"][..., 0].T, [number] * 2)
        np.testing.assert_array_equal(batch["asr_stats"][..., 0].T, [number] * 3)
        np.testing.assert_array_equal(batch["singer_id"], number % 3)


def test_crops_start_anywhere_in_a_record(ramps):
    found = batches(ramps, 60)
    length = np.array([ASR_FRAMES[n % 3] for n in numbers(found)])
    for num_asr_frames in ASR_FRAMES:
        chosen = starts(found)[length == num_asr_frames] / 320
        values, counts = np.unique(chosen, return_counts=True)
        assert values.tolist() == list(range(num_asr_frames - 1))
        # 400 draws of at most 7 places: 5 standard deviations.
        assert counts.min() > 400 / len(values) - 5 * np.sqrt(400 / len(values))


@pytest.mark.parametrize("batch_size", [20, 7])  # the second does not divide an epoch
def test_every_epoch_has_every_record_once_in_an_order_of_its_own(ramps, batch_size):
    found = numbers(batches(ramps, 2 * NUM_TRAIN // batch_size, batch_size=batch_size))
    first = found[:NUM_TRAIN]
    second = found[NUM_TRAIN : 2 * NUM_TRAIN]
    assert sorted(first) == list(range(NUM_TRAIN))
    assert len(set(second)) == len(second) > 0.9 * NUM_TRAIN
    same_place = sum(a == b for a, b in zip(first, second))
    assert same_place < 10  # 1 is expected of two random orders
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(first))
    assert neighbours < 15  # 2 are expected


def test_order_and_crops_are_functions_of_the_seed(ramps):
    assert_same(batches(ramps, 3), batches(ramps, 3))
    others = batches(ramps, 3, seed=4)
    assert numbers(others) != numbers(batches(ramps, 3))


def test_a_resumed_run_gets_what_it_would_have_got(ramps):
    whole = batches(ramps, 22)  # beyond an epoch
    assert_same(batches(ramps, 5, first_step=17), whole[17:])


@pytest.mark.parametrize("count", [2, 5])
def test_hosts_have_the_parts_of_one_batch(ramps, count):
    whole = batches(ramps, 17, first_step=2)
    parts = [
        batches(ramps, 17, first_step=2, shard_index=index, shard_count=count)
        for index in range(count)
    ]
    assert {len(batch["audio"]) for part in parts for batch in part} == {20 // count}
    joined = [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_a_batch_that_hosts_cannot_share_is_refused(ramps):
    with pytest.raises(ValueError, match="batch_size 20 cannot be divided by 3 hosts"):
        batches(ramps, 1, shard_count=3)


def test_a_dataset_of_one_record_is_enough(tmp_path):
    found = batches(write(tmp_path / "one", 1, 0), 3, batch_size=4)
    assert numbers(found) == [0] * 12


# Evaluation.


@pytest.mark.parametrize(("batch_size", "num_batches"), [(2, 3), (5, 1), (8, 1)])
def test_evaluation_has_every_record_in_order_in_full_batches(
    ramps, batch_size, num_batches
):
    found = input_pipeline.eval_batches(
        ramps, GRID, split="validation", batch_size=batch_size
    )
    assert len(found) == num_batches
    assert {batch["audio"].shape for batch in found} == {(batch_size, 640)}
    own = list(range(NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION))
    assert numbers(found) == (own * 2)[: num_batches * batch_size]
    middles = {2: 0, 3: 0, 8: 3 * 320}  # of 0, 1 and 6 ASR frames to spare
    expected = [middles[ASR_FRAMES[n % 3]] for n in numbers(found)]
    np.testing.assert_array_equal(starts(found), expected)


# Refusals.


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_split_without_records_is_refused(tmp_path):
    folder = write(tmp_path / "d", 2, 0)
    line = refusal(
        input_pipeline.eval_batches, folder, GRID, split="validation", batch_size=2
    )
    assert line.startswith(f"{folder}: split 'validation' holds no records; ")


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_dataset_is_refused(tmp_path, exists):
    folder = tmp_path / "d"
    if exists:
        folder.mkdir()
    line = refusal(batches, folder, 1)
    assert line.startswith(f"{folder}: no singers.json, so neither dataset nor model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sample_rate": 24_000}, "sample_rate is 24000, the config's 16000"),
        ({"hop_length": 80}, "hop_length is 80, the config's 64"),
        ({"asr_hop_length": 640}, "asr_hop_length is 640, the config's 320"),
        ({"asr": {"size": 2000}}, "ASR feature size is 2000, the config's 2"),
    ],
)
def test_a_dataset_of_another_geometry_is_refused_with_both_values(ramps, change, said):
    card = schema.Card.read(ramps)
    input_pipeline.check_card(card, GRID, 2)
    other = dataclasses.replace(card, **change)
    line = refusal(input_pipeline.check_card, other, GRID, 2)
    assert line.startswith(f"the dataset's {said}; ")
