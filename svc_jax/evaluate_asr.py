"""Measures a Wav2Letter on recordings with transcripts.

  python -m svc_jax.evaluate_asr --wav2letter=runs/asr/wav2letter.safetensors \\
      --transcripts=sung/transcripts.tsv --output=report.json

Error rates of greedy and beam decoding for every split but train; where a split has
few different transcripts, how often the right one scores best; and linear probes of
each layer: who speaks, which is to be forgotten, and what is said, which is not.
"""

from svc_jax import command_line

LIMITS = {"batch_seconds": 64.0, "max_buckets": 6}  # of the batches


def evaluate(wav2letter, transcripts_path) -> dict[str, dict]:
    """Reports of a network by split, see recognition.report.

    Args:
      wav2letter: weights.Weights of it.
      transcripts_path: a table or a folder, see transcripts.read.

    Raises:
      UserError: if there is nothing to measure.
    """
    from data_pipeline import transcripts
    from svc_jax import builders, recognition
    from svc_jax.errors import UserError

    labels = wav2letter.config["labels"][:-1]  # the last is the blank
    unit = "letters" if all(len(label) == 1 for label in labels) else "phones"
    folder, rows = transcripts.read(transcripts_path)
    rows = [row for row in rows if row["split"] != "train"]
    splits, left_out = transcripts.load(folder, rows, unit, tuple(labels))
    for path, reason in left_out:
        print(f"left out {path}: {reason}")
    if not splits:
        raise UserError(
            f"{transcripts_path}: no usable recording of a split other than train."
        )
    network = builders.wav2letter(wav2letter.config)
    return {
        split: recognition.report(
            network, wav2letter.params, utterances, labels, unit, LIMITS
        )
        for split, utterances in splits.items()
    }


def main(_, flags):
    from svc_jax import checkpoints, recognition, weights

    found = evaluate(weights.wav2letter(flags.wav2letter), flags.transcripts)
    if flags.output:
        checkpoints.write_json(flags.output, found)
    print("\n".join(recognition.lines(found)))


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string(
        "wav2letter", None, "Its weights; the published ones if not given."
    )
    flags.DEFINE_string(
        "transcripts",
        None,
        "A table of transcripts, or a folder in LibriSpeech's layout.",
        required=True,
    )
    flags.DEFINE_string("output", None, "JSON of all that is printed.")


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
