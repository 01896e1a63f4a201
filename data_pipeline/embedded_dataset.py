"""The embedded corpus as a dataset, made from nothing: what the demo trains on."""

import importlib
import os
import pathlib
import shutil

from svc_jax.errors import UserError

NUM_PHRASES = 720  # 25 minutes of syllables for the recogniser
NOTES_PER_PHRASE = 3
PHRASE_SEED = 1  # not the corpus's: the recogniser never reads its songs


def write_phrases(folder) -> pathlib.Path:
    """Writes short phrases, each of its own syllables, sung by all singers in turn.

    A recogniser that trains on the few long songs of the corpus learns those by heart.

    Args:
      folder: made, with recordings and transcripts.tsv, once.

    Returns:
      Path of the table.
    """
    import soundfile

    from data_pipeline import demo_corpus

    folder = pathlib.Path(folder)
    table = folder / "transcripts.tsv"
    if table.exists():
        return table
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = ["path\tsplit\tspeaker\ttext\tphones"]
    notes, num_songs = [], 0
    for number in range(NUM_PHRASES):
        while len(notes) < NOTES_PER_PHRASE:
            song = demo_corpus.make_song(PHRASE_SEED, num_songs)
            notes += [note for note in song.notes if note.vowel]
            num_songs += 1
        rest = demo_corpus.Note(0, 0.15)
        phrase = demo_corpus.Song(
            f"phrase_{number:04d}", (rest, *notes[:NOTES_PER_PHRASE], rest)
        )
        notes = notes[NOTES_PER_PHRASE:]
        singer = demo_corpus.SINGERS[number % len(demo_corpus.SINGERS)]
        audio = demo_corpus.render(
            demo_corpus.score(phrase), singer, seed=(PHRASE_SEED, number)
        )
        path = f"{phrase.name}.flac"
        soundfile.write(partial / path, audio, demo_corpus.SAMPLE_RATE)
        split = "validation" if number % 20 == 0 else "train"
        phones = " ".join(phrase.phones)
        rows.append(f"{path}\t{split}\t{singer.name}\t{phrase.text}\t{phones}")
    (partial / table.name).write_text("\n".join(rows) + "\n")
    os.replace(partial, folder)
    return table


def pitch_network() -> str:
    """crepe-tiny where its weights can be had without asking, else yin, said aloud."""
    from svc_jax import weights

    try:
        weights.crepe("tiny", allow_download=False)
    except UserError as error:
        print(f"note: {error}")
        print("note: the demo goes on with YIN for the pitch and without L_crepe.")
        return "yin"
    return "crepe-tiny"


def make(folder, geometry) -> pathlib.Path:
    """Synthesises the corpus, trains a recogniser on its syllables, prepares a dataset.

    What is already there is kept.

    Args:
      folder: gets corpus/, phrases/, asr/ and dataset/.
      geometry: grids of the dataset.

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
    config.data.transcripts = str(write_phrases(folder / "phrases"))
    wav2letter = train_asr.train(config, folder / "asr")
    print("extracting features")
    prepare.prepare(
        corpus / "recordings",
        dataset,
        geometry=geometry,
        f0=pitch_network(),
        wav2letter_path=wav2letter,
    )
    return dataset
