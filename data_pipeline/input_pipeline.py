"""Datasets -> batches: numpy dicts with the names of svc_jax.types.Batch; no JAX.

The order is a function of the seed alone, and every batch a function of (seed, step):
a run that resumes at step N gets at once what it would have got. Hosts take their part
of the same global batch, so that their number changes nothing either.
"""

import concurrent.futures
import pathlib
import struct

import numpy as np

from data_pipeline import sampling, schema
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry

BATCH_FIELDS = (
    "audio",
    "f0_hz",
    "loudness_db",
    "asr_features",
    "asr_stats",
    "singer_id",
)


def record_offsets(path) -> np.ndarray:
    """Where the records of a TFRecord file are: int64 [records, 2], offset and length.

    A record is its length (uint64), a checksum of that, the bytes, their checksum.
    """
    found = []
    with open(path, "rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0]
            found.append((file.tell(), length))
            file.seek(length + 4, 1)
    return np.asarray(found, np.int64).reshape(-1, 2)


def files(data_dir, split: str, file_format: str = "*") -> list[pathlib.Path]:
    """The files of records of a split, in their order."""
    pattern = f"{schema.NAME}-{split}.{file_format}-*"
    return sorted(pathlib.Path(data_dir).glob(pattern))


def local_batch_size(batch_size: int, shard_count: int) -> int:
    """Examples of a batch that each host has.

    Raises:
      ValueError: if hosts cannot share a batch evenly.
    """
    if batch_size % shard_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided by {shard_count} hosts."
        )
    return batch_size // shard_count


class Records:
    """Random access to the records of one split.

    Raises:
      UserError: if the dataset or the split holds nothing.
    """

    def __init__(self, data_dir, split: str):
        folder = pathlib.Path(data_dir)
        self.card = schema.Card.of_dataset(folder)
        self._files = files(folder, split, "tfrecord")
        offsets = [record_offsets(path) for path in self._files]
        if not sum(map(len, offsets)):
            raise UserError(
                f"{data_dir}: split {split!r} holds no records; prepare it again with"
                " recordings in it."
            )
        self._file = np.repeat(np.arange(len(offsets)), [len(o) for o in offsets])
        self._offsets = np.concatenate(offsets)

    def __len__(self) -> int:
        return len(self._file)

    def read(self, index: int) -> bytes:
        """A record as it stands in its file."""
        offset, length = self._offsets[index]
        with self._files[self._file[index]].open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def load(self, index):
        """A record as a dict of tensors; index is a scalar int64 tensor."""
        import tensorflow as tf

        raw = tf.numpy_function(self.read, [index], tf.string, stateful=False)
        return parse(tf.reshape(raw, ()), self.card.asr["size"])


def parse(raw, asr_size: int):
    """A record's bytes as the tensors of BATCH_FIELDS, by the contract of `schema`."""
    import tensorflow as tf

    def field(axes, dtype):
        if dtype == "float16":  # kept as bytes
            return tf.io.FixedLenFeature((), tf.string)
        stored = tf.int64 if dtype.startswith("int") else tf.float32
        if any(isinstance(axis, str) for axis in axes):
            return tf.io.FixedLenSequenceFeature((), stored, allow_missing=True)
        return tf.io.FixedLenFeature(axes, stored)

    spec = {name: field(*schema.FEATURES[name]) for name in BATCH_FIELDS}
    example = tf.io.parse_single_example(raw, spec)
    asr_features = tf.io.decode_raw(example["asr_features"], tf.float16)
    example["asr_features"] = tf.reshape(asr_features, (-1, asr_size))
    example["singer_id"] = tf.cast(example["singer_id"], tf.int32)
    return example


def eval_split(data_dir) -> str:
    """`validation`, or `train` where a dataset of single recordings has none, said."""
    if any(path.stat().st_size for path in files(data_dir, "validation")):
        return "validation"
    print("note: no recording is kept for validation; the training ones are used.")
    return "train"


def check_card(card: schema.Card, geometry: FrameGeometry, asr_size: int):
    """Raises UserError unless a dataset fits the config; says both values."""
    wanted = {
        "sample_rate": (card.sample_rate, geometry.sample_rate),
        "hop_length": (card.hop_length, geometry.hop_length),
        "asr_hop_length": (card.asr_hop_length, geometry.asr_hop_length),
        "ASR feature size": (card.asr["size"], asr_size),
    }
    for name, (found, asked) in wanted.items():
        if found != asked:
            raise UserError(
                f"the dataset's {name} is {found}, the config's {asked}; prepare the"
                " dataset again or change the config."
            )


def spans(geometry: FrameGeometry) -> dict[str, tuple[int, int]]:
    """Field -> (its rows per ASR frame, its rows in a segment), of what `crop` cuts."""
    frames_per_asr = geometry.asr_hop_length // geometry.hop_length
    return {
        "audio": (geometry.asr_hop_length, geometry.segment_samples),
        "f0_hz": (frames_per_asr, geometry.segment_frames),
        "loudness_db": (frames_per_asr, geometry.segment_frames),
        "asr_features": (1, geometry.segment_asr_frames),
    }


def crop(example, start, geometry: FrameGeometry):
    """Cuts a segment from a record, on every frame grid.

    Args:
      example: dict of tensors, whole record.
      start: first ASR frame of the segment.
      geometry: of the segment.

    Returns:
      dict of tensors named as in BATCH_FIELDS.
    """
    import tensorflow as tf

    segment = {name: example[name] for name in BATCH_FIELDS}
    for name, (stride, count) in spans(geometry).items():
        value = example[name][start * stride : start * stride + count]
        segment[name] = tf.ensure_shape(value, [count, *value.shape[1:]])
    segment["asr_features"] = tf.cast(segment["asr_features"], tf.float32)
    return segment


def train_batches(
    data_dir,
    geometry: FrameGeometry,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    balance: str = "none",
):
    """Endless batches of random segments from the training split.

    Args:
      data_dir: a prepared dataset.
      geometry: of the segments.
      batch_size: over all hosts.
      seed: of order and crops.
      first_step: of the first batch.
      shard_index, shard_count: this host and how many there are.
      balance: what is drawn equally often: each record (none), each singer, or each
        half octave of pitch; see `sampling.groups`.

    Returns:
      Iterator of dicts of numpy arrays, batch_size / shard_count examples each.

    Raises:
      UserError: if the records cannot be read, or not be balanced.
    """
    import tensorflow as tf

    records = Records(data_dir, "train")
    local = local_batch_size(batch_size, shard_count)
    members = sampling.groups(data_dir, "train", balance, len(records))
    order = tf.constant(np.concatenate(members))
    counts = np.asarray([len(group) for group in members])
    starts = tf.constant(np.cumsum(counts) - counts)
    counts, num_groups = tf.constant(counts), len(members)

    def shuffled(place, total, *seeds):
        return tf.random.experimental.index_shuffle(
            place, seed=tf.stack(seeds), max_index=total - 1
        )

    def index_of(position):
        """The record at a position of the endless row of all hosts' examples."""
        # Every round visits each group once, in an order of its own; every epoch of a
        # group visits each of its records once, likewise.
        turn, place = position // num_groups, position % num_groups
        group = shuffled(place, np.int64(num_groups), np.int64(-1 - seed), turn)
        count = counts[group]
        epoch, place = turn // count, turn % count
        stream = epoch * num_groups + group
        return order[starts[group] + shuffled(place, count, np.int64(seed), stream)]

    def example(number):
        """The number-th example of this host since the beginning of the run."""
        step, row = number // local, number % local
        position = step * batch_size + shard_index * local + row
        record = records.load(index_of(position))
        last = tf.shape(record["asr_features"])[0] - geometry.segment_asr_frames
        start = tf.random.stateless_uniform(
            (), tf.stack([seed, position]), 0, last + 1, tf.int32
        )
        return crop(record, start, geometry)

    dataset = tf.data.Dataset.range(first_step * local, np.iinfo(np.int64).max)
    dataset = dataset.map(example, num_parallel_calls=4, deterministic=True)
    return dataset.batch(local, drop_remainder=True).prefetch(4).as_numpy_iterator()


def ahead(batches):
    """The same endless batches, each fetched while the one before it is in use.

    By a thread: where the device is this machine's processors, the one that trains
    would wait for a moment of theirs.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches)
        while True:
            batch = coming.result()
            coming = thread.submit(next, batches)
            yield batch


def spread(count: int, batch_size: int, most: int | None) -> np.ndarray:
    """Which of `count` records fill `most` batches, or as many as hold all of them."""
    num_batches = -(-count // batch_size)
    if most is not None and most < num_batches:
        return np.arange(most * batch_size) * count // (most * batch_size)
    return np.arange(num_batches * batch_size) % count


def eval_batches(
    data_dir,
    geometry: FrameGeometry,
    *,
    split: str,
    batch_size: int,
    most: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
):
    """The middle segments of the records of a split, in order; the last batch is full.

    Args:
      data_dir: a prepared dataset.
      geometry: of the segments.
      split: its name.
      batch_size: over all hosts; the first records fill up the last batch.
      most: batches, of records from all over the split; None for every record.
      shard_index, shard_count: this host and how many there are.

    Returns:
      list of dicts of numpy arrays, batch_size / shard_count examples each.
    """
    import tensorflow as tf

    records = Records(data_dir, split)
    chosen = spread(len(records), batch_size, most)
    local = local_batch_size(batch_size, shard_count)

    def example(number):
        step, row = number // local, number % local
        position = step * batch_size + shard_index * local + row
        record = records.load(tf.constant(chosen)[position])
        last = tf.shape(record["asr_features"])[0] - geometry.segment_asr_frames
        return crop(record, last // 2, geometry)

    num_examples = len(chosen) // shard_count
    dataset = tf.data.Dataset.range(num_examples).map(example)
    return list(dataset.batch(local).as_numpy_iterator())
