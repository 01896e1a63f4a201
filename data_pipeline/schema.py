"""The dataset contract, written once; imports no JAX."""

import dataclasses
import json

from etils import epath

from svc_jax.errors import UserError

NAME = "singing"
VERSION = "2.0.0"
RELEASE_NOTES = {
    "1.0.0": "f0 by CREPE and Viterbi; loudness as the mean of the dB spectrum of a"
    " 2048-point FFT; ASR features as float16.",
    "2.0.0": "asr_stats of every coefficient instead of every block of them.",
}
MAX_RECORD_SECONDS = 10.0
CARD = "singers.json"
FROZEN = "frozen"  # folder of the networks that made the features
INDEX = "index"  # folder of what sampling asks of the records: index/SPLIT-00000.npz

# name -> (axes, dtype); an axis named by a word has any length.
FEATURES = {
    "audio": (("samples",), "float32"),
    "f0_hz": (("frames",), "float32"),
    "f0_confidence": (("frames",), "float32"),
    "loudness_db": (("frames",), "float32"),
    "asr_features": (("asr_frames", "asr_size"), "float16"),
    "asr_stats": ((3, 13, 2), "float32"),
    "singer_id": ((), "int32"),
    "recording": ((), "str"),  # where it is from: singer/name
    "position": ((), "int64"),  # first sample within the recording
}


@dataclasses.dataclass(frozen=True)
class Singer:
    """What is known of a singer.

    Attributes:
      name: of the folder of recordings.
      mean_f0_hz: arithmetic mean over voiced frames.
      low_f0_hz, high_f0_hz: 1st and 99th percentile over voiced frames.
      minutes: of recordings.
    """

    name: str
    mean_f0_hz: float
    low_f0_hz: float
    high_f0_hz: float
    minutes: float


@dataclasses.dataclass(frozen=True)
class Card:
    """A dataset's description of itself.

    Attributes:
      singers: in the order of their ids.
      sample_rate, hop_length, asr_hop_length: the grids, in Hz and samples.
      f0: {"network": "crepe-tiny" or "yin", "sha256", "hop_length"}.
      asr: {"network": "wav2letter", "sha256", "layer", "size"}.
      normalize_lufs: loudness the recordings were brought to; None for as they were.
      version: of the contract.
    """

    singers: tuple[Singer, ...]
    sample_rate: int
    hop_length: int
    asr_hop_length: int
    f0: dict
    asr: dict
    normalize_lufs: float | None = None
    version: str = VERSION

    def write(self, folder):
        path = epath.Path(folder) / CARD
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder) -> "Card":
        """Reads the card of a dataset, workdir or model.

        Raises:
          UserError: if there is none, or it is damaged or of a newer version.
        """
        path = epath.Path(folder) / CARD
        if not path.is_file():
            raise UserError(
                f"{folder}: no {CARD}, so neither dataset nor model; make a dataset"
                " with python -m data_pipeline.prepare."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["version"]
            is_newer = _major(version) > _major(VERSION)
            if not is_newer:
                singers = tuple(Singer(**singer) for singer in values.pop("singers"))
                return cls(singers=singers, **values)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: damaged ({error}); make the dataset or the model again."
            ) from error
        raise UserError(
            f"{path}: version {version} is newer than {VERSION}; update svc_jax."
        )

    @classmethod
    def of_dataset(cls, folder) -> "Card":
        """Reads the card of a dataset whose records are to be read.

        Raises:
          UserError: as `read` does, or if the records are of an older version.
        """
        card = cls.read(folder)
        if _major(card.version) < _major(VERSION):
            raise UserError(
                f"{folder}: its records are of version {card.version}, older than"
                f" {VERSION}; prepare the recordings again."
            )
        return card

    def singer_id(self, name: str) -> int:
        """Raises UserError that lists the known singers if the name is none of them."""
        names = [singer.name for singer in self.singers]
        if name not in names:
            known = ", ".join(names)
            raise UserError(f"singer {name!r} is unknown; the model knows {known}.")
        return names.index(name)


def _major(version: str) -> int:
    return int(version.split(".")[0])
