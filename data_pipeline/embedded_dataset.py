"""The embedded corpus as a dataset, made from nothing: what the demo trains on."""

import importlib
import pathlib

from svc_jax.errors import UserError


def pitch_network() -> str:
    """crepe-tiny where its weights can be had without asking, else yin, said aloud."""
    from svc_jax import weights

    try:
        weights.crepe("tiny")
    except UserError as error:
        print(f"note: {error}")
        print("note: the demo goes on with YIN for the pitch and without L_crepe.")
        return "yin"
    return "crepe-tiny"


def make(folder) -> pathlib.Path:
    """Synthesises the corpus, trains a recogniser on it and prepares the dataset.

    What is already there is kept.

    Args:
      folder: gets corpus/, asr/ and dataset/.

    Returns:
      The dataset's folder.
    """
    from data_pipeline import demo_corpus, prepare
    from svc_jax import train_asr

    folder = pathlib.Path(folder)
    dataset = folder / "dataset"
    if dataset.exists():
        return dataset
    print("singing the embedded corpus")
    corpus = demo_corpus.write_corpus(folder / "corpus")
    print("training a small Wav2Letter on its syllables")
    config = importlib.import_module("configs.asr").get_config("demo")
    config.data.tsv = str(corpus / "transcripts.tsv")
    wav2letter = train_asr.train(config, folder / "asr")
    print("extracting features")
    prepare.prepare(
        corpus / "recordings",
        dataset,
        f0=pitch_network(),
        wav2letter_path=wav2letter,
    )
    return dataset
