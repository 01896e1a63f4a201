"""Records -> files in the layout of tensorflow-datasets, and an index of them."""

import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from data_pipeline import extraction, schema
from data_pipeline.feature_cache import FeatureCache, replacing
from svc_jax.geometry import FrameGeometry

SHARD_BYTES = 200 << 20


@dataclasses.dataclass(frozen=True)
class Reference:
    """A record that is still in the cache."""

    key: str
    recording: str
    singer_id: int
    span: tuple[int, int]  # ASR frames


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to be written."""

    split: str
    number: int
    references: tuple[Reference, ...]


def plan(
    references: Sequence[Reference],
    split: str,
    first: int,
    geometry: FrameGeometry,
    asr_size: int,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[Shard]:
    """Deals records to files of about `shard_bytes`, in their order.

    Args:
      references: of one split.
      split: its name.
      first: number of the first file.
      geometry, asr_size: of the records.
      shard_bytes: a file ends before it would be longer.
    """
    ratio = geometry.asr_hop_length // geometry.hop_length
    bytes_per_frame = 4 * (geometry.asr_hop_length + 3 * ratio) + 2 * asr_size
    sizes = [bytes_per_frame * (r.span[1] - r.span[0]) for r in references]
    number = np.cumsum(sizes) // shard_bytes
    grouped = itertools.groupby(zip(number, references, strict=True), lambda x: x[0])
    for count, (_, group) in enumerate(grouped):
        yield Shard(split, first + count, tuple(reference for _, reference in group))


def name(split: str, number: int, file_format: str) -> str:
    """What a file of records is called."""
    return f"{schema.NAME}-{split}.{file_format}-{number:05d}"


def features(asr_size: int):
    """The contract as tensorflow-datasets writes it."""
    import tensorflow_datasets as tfds

    axes = {"samples": None, "frames": None, "asr_frames": None, "asr_size": asr_size}

    def feature(shape, dtype):
        if dtype == "str":
            return tfds.features.Text()
        return tfds.features.Tensor(
            shape=tuple(axes.get(axis, axis) for axis in shape),
            dtype=np.dtype(dtype),
            # tf.train.Example knows no float16.
            encoding="bytes" if dtype == "float16" else "none",
        )

    return tfds.features.FeaturesDict(
        {field: feature(*spec) for field, spec in schema.FEATURES.items()}
    )


def write_records(
    path, records: Iterable[dict], asr_size: int, file_format: str
) -> dict[str, list]:
    """Writes records named as in schema.FEATURES under a temporary name.

    Returns:
      dict of columns, a value for each record: asr_frames, singer_id and f0_hz, the
      mean over voiced frames or 0.
    """
    from tensorflow_datasets.core import example_serializer, file_adapters

    contract = features(asr_size)
    serializer = example_serializer.ExampleSerializer(contract.get_serialized_info())
    columns = {"asr_frames": [], "singer_id": [], "f0_hz": []}

    def examples():
        for number, record in enumerate(records):
            voiced = record["f0_hz"][record["f0_hz"] > 0]
            columns["asr_frames"].append(len(record["asr_features"]))
            columns["singer_id"].append(record["singer_id"])
            mean = voiced.mean(dtype=np.float64) if voiced.size else 0.0
            columns["f0_hz"].append(float(mean))
            example = serializer.get_tf_example(contract.encode_example(record))
            # Protocol buffers do not order the fields of an Example otherwise.
            yield number, example.SerializeToString(deterministic=True)

    adapter = file_adapters.ADAPTER_FOR_FORMAT[
        file_adapters.FileFormat.from_value(file_format)
    ]
    with replacing(path) as partial:
        adapter.write_examples(partial, examples())
    return columns


def write_shard(
    shard: Shard,
    folder,
    cache: FeatureCache,
    geometry: FrameGeometry,
    asr_size: int,
    file_format: str,
) -> None:
    """Writes a file of records and its part of the index."""

    def records():
        for reference in shard.references:
            entry = cache.entry(reference.key)
            yield {
                **extraction.read_record(entry, geometry, reference.span),
                "singer_id": reference.singer_id,
                "recording": reference.recording,
                "position": reference.span[0] * geometry.asr_hop_length,
            }

    path = epath.Path(folder) / name(shard.split, shard.number, file_format)
    columns = write_records(path, records(), asr_size, file_format)
    write_index(folder, shard.split, shard.number, columns)


def write_index(folder, split: str, number: int, columns: dict[str, list]):
    """Keeps what sampling asks of the records of one file, beside it."""
    path = epath.Path(folder) / schema.INDEX / f"{split}-{number:05d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "asr_frames": np.asarray(columns["asr_frames"], np.int32),
        "singer_id": np.asarray(columns["singer_id"], np.int32),
        "f0_hz": np.asarray(columns["f0_hz"], np.float32),
    }
    npz = io.BytesIO()  # for a file in a bucket is written from its start to its end
    np.savez(npz, **arrays)
    with replacing(path) as partial:
        partial.write_bytes(npz.getvalue())


def write_info(folder, shard_lengths: dict[str, list[int]], asr_size, file_format):
    """Writes what `tfds.builder_from_directory` reads: dataset_info and features."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming, splits

    folder = epath.Path(folder)
    identity = tfds.core.DatasetIdentity(
        name=schema.NAME,
        version=tfds.core.Version(schema.VERSION),
        data_dir=str(folder),
        module_name="data_pipeline.prepare",
        release_notes=schema.RELEASE_NOTES,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features(asr_size))
    info.set_file_format(file_format)

    def split_info(split: str, lengths: list[int]):
        paths = [folder / name(split, n, file_format) for n in range(len(lengths))]
        return splits.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=sum(path.stat().length for path in paths),
            filename_template=naming.ShardedFileTemplate(
                dataset_name=schema.NAME,
                data_dir=folder,
                split=split,
                filetype_suffix=file_format,
                template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
            ),
        )

    info.set_splits(
        splits.SplitDict([split_info(*pair) for pair in shard_lengths.items()])
    )
    info.write_to_directory(folder)
