"""Batches for hosts without tensorflow: grain reads array_record.

The schema, crops and promises of `input_pipeline`, in an order of its own.
"""

import os

import numpy as np

from data_pipeline import input_pipeline, sampling, schema
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry

THREADS = 4


def _open(data_dir, split: str):
    """(the records of a split, by number; size of their ASR features)."""
    import grain

    asr_size = schema.Card.of_dataset(data_dir).asr["size"]
    paths = input_pipeline.files(data_dir, split, "array_record")
    if not paths:
        raise UserError(
            f"{data_dir}: holds no array_record of the split {split!r}; prepare it with"
            " --file_format array_record, or set config.data.loader to tf."
        )
    source = grain.sources.ArrayRecordDataSource([os.fspath(path) for path in paths])
    return source, asr_size


def parse(raw: bytes, asr_size: int) -> dict[str, np.ndarray]:
    """A record's bytes as the arrays of BATCH_FIELDS, by the contract of `schema`."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(raw).features.feature
    example = {}
    for name in input_pipeline.BATCH_FIELDS:
        axes, dtype = schema.FEATURES[name]
        if dtype == "float16":  # kept as bytes
            array = np.frombuffer(features[name].bytes_list.value[0], dtype)
        elif dtype.startswith("int"):
            array = np.asarray(features[name].int64_list.value, dtype)
        else:
            array = _floats(features[name].float_list)
        sizes = {"asr_size": asr_size}
        shape = [
            sizes.get(axis, -1) if isinstance(axis, str) else axis for axis in axes
        ]
        example[name] = array.reshape(shape)
    return example


def _floats(message) -> np.ndarray:
    """float32 of a FloatList: they end its wire format, packed, in little-endian order.

    Protobuf gives them out one by one, a hundred times as slowly.
    """
    count = len(message.value)
    return np.frombuffer(message.SerializeToString()[-4 * count :], "<f4")


def crop(example: dict, start: int, geometry: FrameGeometry) -> dict[str, np.ndarray]:
    """Cuts a segment from a record, on every frame grid, as input_pipeline.crop does.

    Args:
      example: whole record.
      start: first ASR frame of the segment.
      geometry: of the segment.
    """
    segment = dict(example)
    for name, (stride, count) in input_pipeline.spans(geometry).items():
        segment[name] = example[name][start * stride : start * stride + count]
    segment["asr_features"] = segment["asr_features"].astype(np.float32)
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

    Args and Returns: as of input_pipeline.train_batches.

    Raises:
      UserError: if the split holds no array_record, or cannot be balanced.
    """
    import grain

    source, asr_size = _open(data_dir, "train")
    local = input_pipeline.local_batch_size(batch_size, shard_count)
    members = sampling.groups(data_dir, "train", balance, len(source))

    def segment(raw: bytes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        example = parse(raw, asr_size)
        last = len(example["asr_features"]) - geometry.segment_asr_frames
        return crop(example, int(rng.integers(0, last + 1)), geometry)

    streams = [
        grain.MapDataset.source(group)
        .seed((seed + 7919 * number) % 2**31)
        .shuffle()
        .repeat()
        for number, group in enumerate(members)
    ]
    indices = grain.MapDataset.mix(streams) if len(streams) > 1 else streams[0]
    examples = (
        indices.map(lambda index: source[int(index)])
        .seed(seed % 2**31)
        .random_map(segment)
    )
    # Position p of the endless row of examples is host p % shard_count's.
    own = examples[shard_index::shard_count].batch(local, drop_remainder=True)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=4)
    return iter(own[first_step:].to_iter_dataset(options))


def eval_batches(
    data_dir,
    geometry: FrameGeometry,
    *,
    split: str,
    batch_size: int,
    most: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> list[dict[str, np.ndarray]]:
    """The middle segments of the records of a split, in order; the last batch is full.

    Args, Returns and Raises: as of input_pipeline.eval_batches.
    """
    source, asr_size = _open(data_dir, split)
    local = input_pipeline.local_batch_size(batch_size, shard_count)
    chosen = input_pipeline.spread(len(source), batch_size, most)
    batches = []
    for first in range(shard_index * local, len(chosen), batch_size):
        segments = []
        for number in chosen[first : first + local]:
            example = parse(source[int(number)], asr_size)
            last = len(example["asr_features"]) - geometry.segment_asr_frames
            segments.append(crop(example, last // 2, geometry))
        names = input_pipeline.BATCH_FIELDS
        batches.append({name: np.stack([s[name] for s in segments]) for name in names})
    return batches
