"""Which records are drawn equally often: groups of records, by singer or by pitch."""

import pathlib

import numpy as np

from data_pipeline import schema
from svc_jax.errors import UserError

BALANCES = ("none", "singer", "pitch")
BANDS_PER_OCTAVE = 2
RAREST = 0.05  # of the largest band; what is rarer joins its neighbour


def read_index(data_dir, split: str) -> dict[str, np.ndarray]:
    """What is known of the records of a split, in their order: columns by name.

    Raises:
      UserError: if the dataset has no index.
    """
    paths = sorted((pathlib.Path(data_dir) / schema.INDEX).glob(f"{split}-*.npz"))
    if not paths:
        raise UserError(
            f"{data_dir}: has no index of its records by singer and pitch; prepare it"
            " again, or set config.data.balance to none."
        )
    columns: dict[str, list] = {}
    for path in paths:
        with np.load(path) as arrays:
            for name in arrays.files:
                columns.setdefault(name, []).append(arrays[name])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def groups(data_dir, split: str, balance: str, num_records: int) -> list[np.ndarray]:
    """The records of each group: groups are drawn equally often, and so are the
    records within each.

    Args:
      data_dir: a prepared dataset.
      split: its name.
      balance: none, one group of all; singer; or pitch, half octaves of mean f0.
      num_records: of the split.

    Returns:
      int64 arrays that together hold every record once.

    Raises:
      UserError: for an unknown balance, or a dataset without an index.
    """
    if balance == "none":
        return [np.arange(num_records)]
    if balance not in BALANCES:
        raise UserError(
            f"config.data.balance is {balance!r}; choose one of {', '.join(BALANCES)}."
        )
    index = read_index(data_dir, split)
    label = index["singer_id"] if balance == "singer" else pitch_bands(index["f0_hz"])
    return [np.flatnonzero(label == value) for value in np.unique(label)]


def pitch_bands(f0_hz: np.ndarray) -> np.ndarray:
    """A number for the half octave of each mean f0; rare ones join the next one.

    Args:
      f0_hz: [R], 0 where nothing is voiced; such records go to the largest band.
    """
    voiced = f0_hz > 0
    band = np.zeros(len(f0_hz), np.int64)
    band[voiced] = np.floor(BANDS_PER_OCTAVE * np.log2(f0_hz[voiced]))
    values, counts = np.unique(band[voiced], return_counts=True)
    if not values.size:
        return band
    common = values[counts >= RAREST * counts.max()]
    nearest = np.abs(band[:, None] - common[None]).argmin(axis=1)
    largest = int(counts[counts >= RAREST * counts.max()].argmax())
    return common[np.where(voiced, nearest, largest)]
