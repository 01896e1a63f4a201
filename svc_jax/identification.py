"""Who sings: told by a linear classifier that was fitted to real recordings alone.

It hears the envelope of spectra: mean and deviation of mel cepstra over the louder
frames, a print for every two seconds of them. Pitch it does not hear, for a conversion
is given its singer's by rule.
"""

import dataclasses
import fnmatch
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import schema
from svc_jax import audio_files, measures, probes
from svc_jax.errors import UserError

PRINT_SECONDS = 2.0
FIT_SECONDS = 120.0  # of each singer at most
_BELOW_LOUDEST = 1e-3  # power of a frame: 30 dB; what is softer is breath or room


def prints(audio, sample_rate: int) -> np.ndarray:
    """What a singer is told by: float32 [N] -> [n, 48], n at least 1."""
    cepstra = measures.mel_cepstra(audio, sample_rate)
    power = measures.frame_powers(audio)
    kept = cepstra[power > _BELOW_LOUDEST * power.max()]
    length = PRINT_SECONDS * sample_rate / measures.CEPSTRUM_HOP
    parts = np.array_split(kept, max(1, round(len(kept) / length)))
    return np.stack(
        [np.concatenate([part.mean(axis=0), part.std(axis=0)]) for part in parts]
    )


@dataclasses.dataclass(frozen=True)
class Identifier:
    """Tells who sings.

    Attributes:
      names: of the singers it knows, at least two.
      classifier: of their prints.
      centroids: [singers, 48], of standardised prints.
    """

    names: tuple[str, ...]
    classifier: probes.Linear
    centroids: np.ndarray

    def scores(self, heard) -> np.ndarray:
        """Log probabilities of the singers from all prints [n, 48]: [singers]."""
        logits = self.classifier.scores(heard)
        return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).sum(axis=0)

    def cosines(self, heard) -> np.ndarray:
        """Cosines between the mean print and the centroids: [singers]."""
        mean = self.classifier.standardise(heard).mean(axis=0)
        norms = np.linalg.norm(self.centroids, axis=1) * np.linalg.norm(mean)
        return self.centroids @ mean / np.maximum(norms, 1e-12)

    def tell(
        self, audio, sample_rate: int, singer: str, corpora: Sequence[str] = ()
    ) -> dict[str, float]:
        """Whether a recording is told to be of a singer.

        Args:
          audio: float32 [N].
          sample_rate: in Hz.
          singer: who should be heard.
          corpora: patterns of names, each of one corpus.

        Returns:
          dict of 1 or 0, NaN for a singer it does not know:
            identified: whether the classifier names them;
            identified_in_corpus: the same, where it may only name singers of their
              own corpus, for channels tell corpora apart; with corpora only;
            nearest_centroid: whether their centroid is the nearest;
          and cosine: that to their centroid.
        """
        names = np.asarray(self.names)
        heard = prints(audio, sample_rate)
        scores, cosines = self.scores(heard), self.cosines(heard)
        found = {"identified": float(names[scores.argmax()] == singer)}
        if corpora:
            own = in_corpus(self.names, singer, corpora)
            best = names[own][scores[own].argmax()] if any(own) else None
            found["identified_in_corpus"] = float(best == singer)
        found["nearest_centroid"] = float(names[cosines.argmax()] == singer)
        if singer not in self.names:
            return dict.fromkeys([*found, "cosine"], float("nan"))
        return {**found, "cosine": float(cosines[self.names.index(singer)])}


def in_corpus(names, singer: str, corpora: Sequence[str]) -> np.ndarray:
    """Which names are of a singer's corpus: [names] of bool; all, if of none."""
    for pattern in corpora:
        if fnmatch.fnmatchcase(singer, pattern):
            return np.asarray([fnmatch.fnmatchcase(name, pattern) for name in names])
    return np.ones(len(names), bool)


def fit(recordings: Mapping[str, Sequence[np.ndarray]], sample_rate: int) -> Identifier:
    """An identifier from real recordings, float32 [N], of each singer.

    Raises:
      UserError: if there are not two singers.
    """
    names = tuple(sorted(name for name, own in recordings.items() if own))
    if len(names) < 2:
        raise UserError(
            f"recordings of {', '.join(names) or 'nobody'}: who sings is told among two"
            " singers and more; name others by --singers_from, or say --noidentify."
        )
    heard = {
        name: np.concatenate([prints(audio, sample_rate) for audio in recordings[name]])
        for name in names
    }
    x = np.concatenate(list(heard.values()))
    y = np.repeat(np.arange(len(names)), [len(own) for own in heard.values()])
    classifier = probes.fit_linear(x, y)
    centroids = [
        classifier.standardise(own).mean(axis=0, keepdims=True)
        for own in heard.values()
    ]
    return Identifier(names, classifier, np.concatenate(centroids))


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Real recordings by their singers' names, float32 [N].

    Attributes:
      fitted: for the classifier.
      held_out: for its own accuracy.
    """

    fitted: dict[str, list[np.ndarray]]
    held_out: dict[str, list[np.ndarray]]


def from_folder(folder, sample_rate: int) -> Recordings:
    """Recordings FOLDER/<singer>/...; every fifth of a singer, or the last, is held out.

    Raises:
      UserError: if one cannot be read.
    """
    found = Recordings({}, {})
    for path in sorted(pathlib.Path(folder).glob("*/")):
        paths = audio_files.find(path)
        held = set(paths[4::5] or paths[1:][-1:])
        kept = FIT_SECONDS * sample_rate
        for file in paths:
            if file not in held and kept <= 0:
                continue
            audio = audio_files.read(file, sample_rate).audio
            if file in held:
                found.held_out.setdefault(path.name, []).append(audio)
            else:
                found.fitted.setdefault(path.name, []).append(audio)
                kept -= audio.size
    return found


def from_dataset(data_dir) -> Recordings:
    """Records that a model was trained on, and those it was validated on.

    Raises:
      UserError: if there are none.
    """
    from data_pipeline import grain_pipeline, input_pipeline

    parts = []
    for split in ("train", "validation"):
        records = input_pipeline.Records(data_dir, split)
        names = [singer.name for singer in records.card.singers]
        found: dict[str, list[np.ndarray]] = {}
        left = dict.fromkeys(names, FIT_SECONDS * records.card.sample_rate)
        for index in range(len(records)):
            raw = records.read(index)
            example = grain_pipeline.parse(raw, records.card.asr["size"])
            name = names[int(example["singer_id"])]
            if left[name] > 0:
                found.setdefault(name, []).append(example["audio"])
                left[name] -= example["audio"].size
        parts.append(found)
    return Recordings(*parts)


def real_recordings(folder, data_dir, sample_rate: int) -> Recordings | None:
    """What there is of real recordings.

    Args:
      folder: that was named for them, or None.
      data_dir: of the dataset that the model was trained on; "" where that is secret.
      sample_rate: of the model, in Hz.

    Returns:
      Those of the folder, else of the dataset; None, and says so, without either.

    Raises:
      UserError: if they cannot be read.
    """
    if folder:
        return from_folder(folder, sample_rate)
    if not (data_dir and (pathlib.Path(data_dir) / schema.CARD).is_file()):
        print(
            "note: who sings is not told, for the dataset is not here; name recordings"
            " by --singers_from."
        )
        return None
    if len(schema.Card.read(data_dir).singers) < 2:
        print("note: who sings is not told, for there is one singer.")
        return None
    return from_dataset(data_dir)


def learn(
    recordings: Recordings, sample_rate: int, corpora: Sequence[str] = ()
) -> tuple[Identifier, dict]:
    """Fits an identifier, and puts it to the recordings that were held out.

    Args:
      recordings: real ones.
      sample_rate: of them, in Hz.
      corpora: see Identifier.tell.

    Returns:
      (Identifier; dict of singers, how many recordings were fitted and how many held
      out, and `held_out`, the means of what it told of those).

    Raises:
      UserError: if there are not two singers.
    """
    identifier = fit(recordings.fitted, sample_rate)
    told = [
        identifier.tell(audio, sample_rate, name, corpora)
        for name, own in recordings.held_out.items()
        if name in identifier.names
        for audio in own
    ]
    keys = told[0] if told else ()
    about = {
        "singers": list(identifier.names),
        "num_fitted": sum(map(len, recordings.fitted.values())),
        "num_held_out": len(told),
        "held_out": {key: float(np.mean([t[key] for t in told])) for key in keys},
    }
    return identifier, about
