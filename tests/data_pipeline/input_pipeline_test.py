"""Datasets as batches: records whose numbers tell where they stood."""

import dataclasses
import itertools
import pathlib
import shutil
import subprocess
import sys
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data_pipeline import grain_pipeline, input_pipeline, sampling, schema, shards
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
        "asr_stats": np.full((3, 13, 2), number, np.float32),
        "singer_id": number % 3,
        "recording": f"{number}",
        "position": 0,
    }


def in_files(records: list) -> list[list]:
    return [records[first : first + 256] for first in range(0, len(records), 256)]


def write(
    folder, num_train: int, num_validation: int, file_format: str = "tfrecord"
) -> pathlib.Path:
    """A dataset of ramps, 256 in a file."""
    records = [record(number) for number in range(num_train + num_validation)]
    splits = {"train": records[:num_train], "validation": records[num_train:]}
    lengths = {}
    folder.mkdir()
    for split, part in splits.items():
        lengths[split] = []
        for number, file in enumerate(in_files(part)):
            path = folder / shards.name(split, number, file_format)
            columns = shards.write_records(path, file, 2, file_format)
            shards.write_index(folder, split, number, columns)
            lengths[split].append(len(file))
    shards.write_info(folder, lengths, 2, file_format)
    singers = tuple(schema.Singer(name, 200, 100, 300, 1) for name in "abc")
    card = schema.Card(singers, 16_000, 64, 320, {"network": "yin"}, {"size": 2})
    card.write(folder)
    return folder


@pytest.fixture(scope="module")
def array_ramps(tmp_path_factory) -> pathlib.Path:
    pytest.importorskip("grain", reason="the extra [grain] is not installed")
    folder = tmp_path_factory.mktemp("array_ramps") / "d"
    return write(folder, NUM_TRAIN, NUM_VALIDATION, "array_record")


@pytest.fixture(scope="module", params=["tf", "grain"])
def loader(request):
    """(train_batches, its dataset) of each loader."""
    if request.param == "tf":
        return input_pipeline.train_batches, request.getfixturevalue("ramps")
    return grain_pipeline.train_batches, request.getfixturevalue("array_ramps")


@pytest.fixture(scope="module")
def ramps(tmp_path_factory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("ramps") / "d", NUM_TRAIN, NUM_VALIDATION)


def batches(folder, count: int, **changes) -> list[dict]:
    """Of a folder, or of a loader."""
    train_batches = input_pipeline.train_batches
    if isinstance(folder, tuple):
        train_batches, folder = folder
    arguments = {"batch_size": 20, "seed": 3, **changes}
    stream = train_batches(folder, GRID, **arguments)
    return list(itertools.islice(stream, count))


def numbers(found: list[dict]) -> list[int]:
    """The records in batches, in order."""
    return [int(n) for batch in found for n in batch["asr_stats"][:, 0, 0, 0]]


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


def test_batches_have_the_fields_and_shapes_of_a_batch(loader):
    (batch,) = batches(loader, 1)
    assert set(batch) == {field.name for field in dataclasses.fields(Batch)}
    shapes = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert shapes == {
        "audio": ((20, 640), "float32"),
        "f0_hz": ((20, 10), "float32"),
        "loudness_db": ((20, 10), "float32"),
        "asr_features": ((20, 2, 2), "float32"),
        "asr_stats": ((20, 3, 13, 2), "float32"),
        "singer_id": ((20,), "int32"),
    }


def test_crops_of_audio_and_features_are_of_the_same_place(loader):
    for batch in batches(loader, 15):
        audio, number = batch["audio"], batch["asr_stats"][:, 0, 0, 0]
        start = audio[:, :1] - STRIDE * number[:, None]
        assert (start % 320 == 0).all()
        np.testing.assert_array_equal(audio, audio[:, :1] + np.arange(640))
        np.testing.assert_array_equal(batch["f0_hz"], audio[:, ::64])
        np.testing.assert_array_equal(batch["loudness_db"], -audio[:, ::64])
        np.testing.assert_array_equal(
            batch["asr_features"][..., 1], start / 320 + np.arange(2)
        )
        np.testing.assert_array_equal(batch["asr_features"][..., 0].T, [number] * 2)
        np.testing.assert_array_equal(batch["asr_stats"][:, :, 0, 0].T, [number] * 3)
        np.testing.assert_array_equal(batch["singer_id"], number % 3)


def test_crops_start_anywhere_in_a_record(loader):
    found = batches(loader, 60)
    length = np.array([ASR_FRAMES[n % 3] for n in numbers(found)])
    for num_asr_frames in ASR_FRAMES:
        chosen = starts(found)[length == num_asr_frames] / 320
        values, counts = np.unique(chosen, return_counts=True)
        assert values.tolist() == list(range(num_asr_frames - 1))
        # 400 draws of at most 7 places: 5 standard deviations.
        assert counts.min() > 400 / len(values) - 5 * np.sqrt(400 / len(values))


@pytest.mark.parametrize("batch_size", [20, 7])  # the second does not divide an epoch
def test_every_epoch_has_every_record_once_in_an_order_of_its_own(loader, batch_size):
    found = numbers(batches(loader, 2 * NUM_TRAIN // batch_size, batch_size=batch_size))
    first = found[:NUM_TRAIN]
    second = found[NUM_TRAIN : 2 * NUM_TRAIN]
    assert sorted(first) == list(range(NUM_TRAIN))
    assert len(set(second)) == len(second) > 0.9 * NUM_TRAIN
    same_place = sum(a == b for a, b in zip(first, second))
    assert same_place < 10  # 1 is expected of two random orders
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(first))
    assert neighbours < 15  # 2 are expected


def test_order_and_crops_are_functions_of_the_seed(loader):
    assert_same(batches(loader, 3), batches(loader, 3))
    others = batches(loader, 3, seed=4)
    assert numbers(others) != numbers(batches(loader, 3))


def test_a_resumed_run_gets_what_it_would_have_got(loader):
    whole = batches(loader, 22)  # beyond an epoch
    assert_same(batches(loader, 5, first_step=17), whole[17:])


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


@pytest.mark.parametrize("count", [2, 5, 20])  # 20 hosts are more than there are files
def test_hosts_parts_are_disjoint_and_complete(loader, count):
    steps = NUM_TRAIN // 20
    parts = [
        numbers(batches(loader, steps, shard_index=index, shard_count=count))
        for index in range(count)
    ]
    assert {len(part) for part in parts} == {NUM_TRAIN // count}
    assert sorted(itertools.chain(*parts)) == list(range(NUM_TRAIN))


def test_step_400_000_is_ready_at_once(loader):
    started = time.monotonic()
    found = batches(loader, 2, first_step=400_000)
    assert time.monotonic() - started < 10
    again = batches(loader, 1, first_step=400_001)
    assert_same(again, found[1:])


# Balance.


@pytest.mark.parametrize("steps", [7, 40])
def test_singers_are_drawn_equally_often_and_their_records_too(
    tmp_path_factory, steps, loader
):
    train_batches, _ = loader
    is_tf = train_batches is input_pipeline.train_batches
    folder = tmp_path_factory.mktemp("unequal") / "d"
    # Of ramps 0 to 14 drop some, so that singers 0, 1 and 2 have 1, 2 and 5.
    kept = [0, 1, 4, 2, 5, 8, 11, 14]
    file_format = "tfrecord" if is_tf else "array_record"
    write_these(folder, [record(number) for number in kept], file_format)
    found = batches((train_batches, folder), steps, batch_size=30, balance="singer")
    singers = np.concatenate([batch["singer_id"] for batch in found])
    np.testing.assert_array_equal(np.bincount(singers), [10 * steps] * 3)
    counts = np.bincount(numbers(found), minlength=15)
    for singer, own in enumerate(([0], [1, 4], [2, 5, 8, 11, 14])):
        assert counts[own].sum() == 10 * steps, singer
        assert counts[own].max() - counts[own].min() <= 1
    resumed = batches(
        (train_batches, folder),
        2,
        batch_size=30,
        balance="singer",
        first_step=steps - 2,
    )
    assert_same(resumed, found[-2:])


def write_these(folder, records, file_format: str):
    write(folder, 1, 0, file_format)
    path = folder / shards.name("train", 0, file_format)
    columns = shards.write_records(path, records, 2, file_format)
    shards.write_index(folder, "train", 0, columns)


def test_pitch_bands_are_half_octaves_and_rare_ones_join_their_neighbour():
    f0_hz = np.repeat([110.0, 113, 220, 440, 900, 0], [50, 50, 100, 60, 1, 9])
    bands = sampling.pitch_bands(f0_hz.astype(np.float32))
    first, fourth = bands[0], bands[-10]
    assert (bands[:100] == first).all()
    assert (bands[100:200] == first + 2).all()
    assert (bands[200:260] == first + 4).all()
    assert fourth == first + 4  # one record in 900 Hz is no band
    assert (bands[-9:] == first).all()  # what has no pitch goes where most is


def test_bands_without_any_pitch_are_one():
    assert len(set(sampling.pitch_bands(np.zeros(5, np.float32)))) == 1


def test_pitches_are_drawn_equally_often(tmp_path):
    records = [record(number) for number in range(12)]
    for number, each in enumerate(records):
        each["f0_hz"] = np.full_like(each["f0_hz"], 110.0 if number < 3 else 440.0)
    write_these(tmp_path / "d", records, "tfrecord")
    found = batches(tmp_path / "d", 9, batch_size=2, balance="pitch")
    low = [n < 3 for n in numbers(found)]
    assert low.count(True) == 9
    assert np.bincount(numbers(found))[:3].tolist() == [3, 3, 3]


def test_an_unknown_balance_and_a_dataset_without_index_are_refused(tmp_path):
    folder = write(tmp_path / "d", 2, 0)
    line = refusal(batches, folder, 1, balance="loudness")
    assert line.startswith("config.data.balance is 'loudness'; choose one of none, ")
    shutil.rmtree(folder / "index")
    batches(folder, 1)
    line = refusal(batches, folder, 1, balance="singer")
    assert line.startswith(f"{folder}: has no index of its records by singer and pitch")


def test_grain_does_not_read_tfrecords(ramps):
    pytest.importorskip("grain", reason="the extra [grain] is not installed")
    line = refusal(grain_pipeline.train_batches, ramps, GRID, batch_size=2, seed=0)
    assert line.startswith(f"{ramps}: holds no array_record of the split 'train'; ")


def test_records_are_parsed_alike_with_and_without_tensorflow(ramps):
    records = input_pipeline.Records(ramps, "train")
    for number in (0, 1, 299):
        raw = records.read(number)
        ours = grain_pipeline.parse(raw, 2)
        theirs = input_pipeline.parse(raw, 2)
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert array.dtype == theirs[name].numpy().dtype, name
            np.testing.assert_array_equal(array, theirs[name].numpy())


def test_grain_needs_no_tensorflow(array_ramps):
    program = (
        "import sys\n"
        "from data_pipeline import grain_pipeline\n"
        "from svc_jax.geometry import FrameGeometry\n"
        "grid = FrameGeometry(segment_samples=640)\n"
        "stream = grain_pipeline.train_batches(\n"
        "    sys.argv[1], grid, batch_size=4, seed=0)\n"
        "print(next(stream)['audio'].shape, 'tensorflow' in sys.modules)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, array_ramps],
        check=False,
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert child.stdout == "(4, 640) False\n", child.stderr


def test_a_batch_that_hosts_cannot_share_is_refused(loader):
    with pytest.raises(ValueError, match="batch_size 20 cannot be divided by 3 hosts"):
        batches(loader, 1, shard_count=3)


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


@hypothesis.given(
    st.integers(1, 500), st.integers(1, 40), st.none() | st.integers(1, 20)
)
def test_a_few_batches_are_of_records_from_all_over(count, batch_size, most):
    chosen = input_pipeline.spread(count, batch_size, most)
    num_batches, rest = divmod(len(chosen), batch_size)
    assert rest == 0
    assert num_batches == min(-(-count // batch_size), most or count)
    distinct = np.unique(chosen)
    assert len(distinct) == min(count, len(chosen))
    gaps = np.diff([*distinct, count])  # the last is to the end
    assert gaps.max(initial=0) - gaps.min(initial=count) <= 1


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("most", [None, 1])
def test_hosts_share_the_batches_of_evaluation(ramps, count, most):
    arguments = {"split": "validation", "batch_size": 4, "most": most}
    whole = input_pipeline.eval_batches(ramps, GRID, **arguments)
    parts = [
        input_pipeline.eval_batches(
            ramps, GRID, **arguments, shard_index=index, shard_count=count
        )
        for index in range(count)
    ]
    joined = [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_evaluation_is_the_same_with_grain(ramps, array_ramps):
    for count, most in ((1, 1), (2, None)):
        arguments = {
            "split": "validation",
            "batch_size": 4,
            "most": most,
            "shard_index": count - 1,
            "shard_count": count,
        }
        found = grain_pipeline.eval_batches(array_ramps, GRID, **arguments)
        assert_same(found, input_pipeline.eval_batches(ramps, GRID, **arguments))


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


def test_fetched_ahead_they_are_the_same_and_one_early():
    fetched = []

    def numbers():
        for number in itertools.count():
            fetched.append(number)
            yield number

    batches = input_pipeline.ahead(numbers())
    assert list(itertools.islice(batches, 5)) == [0, 1, 2, 3, 4]
    batches.close()
    assert fetched == [0, 1, 2, 3, 4, 5]


def test_what_goes_wrong_ahead_is_raised_in_its_turn():
    def batches():
        yield 0
        raise UserError("the disk is gone")

    found = input_pipeline.ahead(batches())
    assert next(found) == 0
    with pytest.raises(UserError, match="the disk is gone"):
        next(found)
