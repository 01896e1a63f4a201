"""How well a Wav2Letter recognises, and what its layers keep of words and of singers."""

import collections
import functools
from collections.abc import Iterator

import numpy as np

from data_pipeline import decoding
from svc_jax import probes

LAYERS = ("mfcc", "hidden", "wide", "logits")  # what probes are put to, from the input
MAX_CHOICES = 16  # so many different transcripts are chosen between
PADDING_FRAMES = 128
PROBED_FRAMES = 16  # of a recording, for the probe of phones


def outputs(wav2letter, params, utterances, limits) -> Iterator[tuple]:
    """What a plain Wav2Letter makes of recordings, one by one.

    Args:
      wav2letter: the network.
      params: its parameters.
      utterances: list of transcripts.Utterance.
      limits: batch_seconds and max_buckets, see transcripts.buckets.

    Yields:
      (Utterance, dict of layer -> [A, C]); the layers as in LAYERS.
    """
    import jax

    from data_pipeline import transcripts

    for batch, members in transcripts.eval_batches(utterances, **limits):
        found, num_frames = jax.device_get(_predict(wav2letter)(params, batch))
        for row, utterance in enumerate(members):
            count = num_frames[row]
            yield utterance, {name: array[row, :count] for name, array in found.items()}


@functools.cache
def _predict(wav2letter):
    import jax

    from svc_jax import asr_steps

    return jax.jit(functools.partial(asr_steps.predict, wav2letter))


class Errors:
    """Error rates over recordings.

    Args:
      labels: the alphabet without the blank.
      unit: phones or letters; letters make words.
    """

    def __init__(self, labels, unit: str):
        self._labels = labels
        self._kinds = ("letter", "word") if unit == "letters" else ("phone",)
        self._rates = collections.defaultdict(decoding.ErrorRate)

    def add(self, found, wanted):
        """Counts the labels that were found against those that were said."""
        letter = self._kinds[0]
        self._rates[letter].add(found, wanted)
        if "word" in self._kinds:
            spelled = (
                [self._labels[n] for n in numbers] for numbers in (found, wanted)
            )
            self._rates["word"].add(*map(decoding.words, spelled))

    def rates(self) -> dict[str, float]:
        """<letter, word or phone>_error_rate."""
        return {f"{kind}_error_rate": float(self._rates[kind]) for kind in self._kinds}


def error_rates(wav2letter, params, utterances, labels, unit, limits):
    """Error rates of the greedy decoding: dict of name -> share of what was said."""
    errors = Errors(labels, unit)
    for utterance, layers in outputs(wav2letter, params, utterances, limits):
        logits = layers["logits"]
        (found,) = decoding.greedy(logits[None], [len(logits)])
        errors.add(found, utterance.labels.tolist())
    return errors.rates()


def report(wav2letter, params, utterances, labels, unit, limits, beam_width=20):
    """All that is measured of recordings that the network was not trained on.

    Args:
      wav2letter: the network.
      params: its parameters.
      utterances: list of transcripts.Utterance.
      labels: the alphabet without the blank.
      unit: phones or letters.
      limits: see `outputs`.
      beam_width: prefixes kept by the beam search.

    Returns:
      dict: recordings, speakers; greedy and beam, each a dict of error rates; choice,
      the share of recordings whose transcript scores best (CTC) among the different
      ones, where those are at most MAX_CHOICES, with its chance; singer_probe and
      phone_probe, each a dict of layer -> accuracy with its chance, where there are
      singers with several recordings.
    """
    by_greedy, by_beam = Errors(labels, unit), Errors(labels, unit)
    texts = sorted({tuple(utterance.labels.tolist()) for utterance in utterances})
    chosen = []
    means, frames = {name: [] for name in LAYERS}, {name: [] for name in LAYERS}
    names, frame_labels = [], []
    for utterance, layers in outputs(wav2letter, params, utterances, limits):
        logits = layers["logits"]
        (found,) = decoding.greedy(logits[None], [len(logits)])
        by_greedy.add(found, utterance.labels.tolist())
        (found,) = decoding.beam(logits[None], [len(logits)], beam_width)
        by_beam.add(found, utterance.labels.tolist())
        if 1 < len(texts) <= MAX_CHOICES:
            best = texts[int(np.argmin(ctc_losses(logits, texts)))]
            chosen.append(best == tuple(utterance.labels.tolist()))
        peaks = decoding.forced_alignment(logits, utterance.labels)
        said = probes.label_frames(peaks, utterance.labels, len(logits))
        kept = np.flatnonzero(said >= 0)
        kept = kept[:: -(-kept.size // PROBED_FRAMES)]
        frame_labels.append(said[kept])
        names.append(utterance.speaker)
        for name in LAYERS:
            means[name].append(layers[name].mean(axis=0, dtype=np.float64))
            frames[name].append(layers[name][kept])
    result = {
        "recordings": len(names),
        "speakers": len(set(names)),
        "greedy": by_greedy.rates(),
        "beam": by_beam.rates(),
    }
    if chosen:
        result["choice"] = {
            "accuracy": float(np.mean(chosen)),
            "chance": 1 / len(texts),
        }
    if max(collections.Counter(names).values()) > 1 and len(set(names)) > 1:
        found = {name: probes.singers(means[name], names) for name in LAYERS}
        result["singer_probe"] = _summary(found)
        half = set(sorted(set(names))[::2])
        fitted = [name in half for name in names]
        found = {
            name: probes.phones(frames[name], frame_labels, fitted) for name in LAYERS
        }
        result["phone_probe"] = _summary(found)
    return result


def _summary(found: dict) -> dict[str, float]:
    chance = next(iter(found.values())).chance
    return {**{name: p.accuracy for name, p in found.items()}, "chance": chance}


def ctc_losses(logits, texts) -> np.ndarray:
    """Negative log likelihood of each of several texts.

    Args:
      logits: [A, C] of one recording.
      texts: sequences of labels.

    Returns:
      [number of texts].
    """
    counts = np.asarray([len(text) for text in texts])
    labels = np.zeros((len(texts), counts.max()), np.int32)
    for row, text in enumerate(texts):
        labels[row, : len(text)] = text
    # Few lengths, for each is compiled.
    padding = -len(logits) % PADDING_FRAMES
    padded = np.pad(logits, ((0, padding), (0, 0)))
    repeated = np.broadcast_to(padded, (len(texts), *padded.shape))
    num_frames = np.full(len(texts), len(logits))
    return np.asarray(_jitted_ctc()(repeated, num_frames, labels, counts)) * counts


@functools.cache
def _jitted_ctc():
    import jax

    from svc_jax import losses

    return jax.jit(
        lambda logits, *rest: losses.ctc_loss(logits, *rest, logits.shape[-1] - 1)
    )


def percents(values: dict[str, float]) -> str:
    """Shares by name, for people: `phone error rate 35.0%, ...`."""
    return ", ".join(f"{k.replace('_', ' ')} {v:.1%}" for k, v in values.items())


def lines(found: dict[str, dict]) -> list[str]:
    """A report of each split, for people."""
    said = []
    for split, values in found.items():
        said.append(
            f"{split}: {values['recordings']} recordings of {values['speakers']} speakers"
        )
        for how in ("greedy", "beam"):
            said.append(f"  {how}: {percents(values[how])}")
        if "choice" in values:
            choice = values["choice"]
            said.append(
                f"  which transcript: {choice['accuracy']:.1%} right (chance"
                f" {choice['chance']:.0%})"
            )
        for probe in ("singer_probe", "phone_probe"):
            if probe in values:
                said.append(f"  {probe.replace('_', ' ')}: {percents(values[probe])}")
    return said
