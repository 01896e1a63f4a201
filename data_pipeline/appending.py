"""A dataset that singers are added to: what it holds, and whether they fit."""

import dataclasses
import os

from data_pipeline import report, schema
from svc_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Existing:
    """A dataset that is added to.

    Attributes:
      card: its description.
      table: rows of its report.
      shard_lengths: split -> records in each of its files.
    """

    card: schema.Card
    table: list[dict[str, str]]
    shard_lengths: dict[str, list[int]]

    @property
    def known_audio(self) -> tuple[tuple[str, str], ...]:
        """(sha256, name) of the audio that is used."""
        return tuple(
            (row["sha256"], row["recording"])
            for row in self.table
            if row["verdict"] != "refused"
        )

    @property
    def known_singers(self) -> tuple[str, ...]:
        """Names in the order of their ids."""
        return tuple(singer.name for singer in self.card.singers)


def read(output, card, recordings, file_format: str) -> Existing:
    """The dataset in a folder, which must fit what is to be added.

    Args:
      output: its folder, an epath.Path.
      card: schema.Card of what is to be added, still without singers.
      recordings: list of sources.Source to be added.
      file_format: tfrecord or array_record.

    Raises:
      UserError: if it was made otherwise, or has a singer of the new ones.
    """
    import tensorflow_datasets as tfds

    old = schema.Card.of_dataset(output)
    info = tfds.builder_from_directory(os.fspath(output)).info
    wanted = {
        **{
            field.name: (getattr(old, field.name), getattr(card, field.name))
            for field in dataclasses.fields(card)
            if field.name not in ("singers", "version")
        },
        "file_format": (info.file_format.value, file_format),
    }
    for name, (found, asked) in wanted.items():
        if found != asked:
            raise UserError(
                f"{output}: its {name} is {found}, what would be added has {asked};"
                " prepare both anew, or with the same options."
            )
    shared = {s.name for s in old.singers} & {source.singer for source in recordings}
    if shared:
        raise UserError(
            f"{output}: has the singer {min(shared)!r} already; give the new one"
            " another name, or prepare all recordings anew."
        )
    lengths = {name: list(s.shard_lengths) for name, s in info.splits.items()}
    return Existing(old, report.read_table(output), lengths)


def link_files(output, partial):
    """Gives a dataset's files of records and their index to the one in the making."""
    (partial / schema.INDEX).mkdir()
    records = output.glob(f"{schema.NAME}-*-[0-9][0-9][0-9][0-9][0-9]")
    for path in (*records, *(output / schema.INDEX).glob("*.npz")):
        target = partial / path.relative_to(output)
        if "://" in os.fspath(path):
            path.copy(target)
        else:
            os.link(path, target)
