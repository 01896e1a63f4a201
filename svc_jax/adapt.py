"""Adds a voice to a trained model, from seconds or minutes of speech or singing.

  python -m svc_jax.adapt --model models/choir --input my_voice/ --name me \\
      --consent "my own voice" --data "half a minute of songs" --output models/choir+me

Recordings of one isolated voice. First the best mixture of the known voices is sought,
then a voice of its own; the generator stays as it is, and with it the known voices, bit
for bit, unless --finetune. Every fifth second is held out and says when to stop. The
output is a folder as svc_jax.export makes it.
"""

import pathlib
import sys

from svc_jax import command_line, model_card

CANNOT_STAND_IN_A_NAME = set("/\\,:")  # of folders, and of --mix


def check(model, name: str):
    """Raises UserError unless a model can be given a singer of that name."""
    from svc_jax.errors import UserError

    known = [singer.name for singer in model.card.singers]
    if not name.strip() or name.startswith(".") or CANNOT_STAND_IN_A_NAME & set(name):
        raise UserError(f"--name {name!r}: take a plain word, as for a folder.")
    if name in known:
        raise UserError(
            f"--name {name!r}: the model knows {', '.join(known)} already; take another."
        )
    if len(known) == 1:
        raise UserError(
            f"a model of one singer, {known[0]}, has no room for another; take one of"
            " several."
        )


def hear(model, folder) -> list:
    """What adaptation.hear hears in the recordings of a folder; says what it leaves out.

    Raises:
      UserError: if none can be used.
    """
    from tqdm import tqdm

    from svc_jax import adaptation, audio_files
    from svc_jax.errors import UserError

    if not pathlib.Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; --input is a folder of recordings.")
    sources = audio_files.find(folder)
    if not sources:
        raise UserError(f"{folder}: holds no audio files; check --input.")
    heard, refused = [], []
    for source in tqdm(sources, desc="hearing", unit="file", disable=None):
        try:
            heard.append(adaptation.hear(model, source))
        except UserError as error:
            refused.append(error)
    if not heard:
        raise UserError(
            f"none of {len(sources)} recordings is usable; the first: {refused[0]}"
        )
    for error in refused:
        print(f"left out: {error}", file=sys.stderr)
    return heard


def mixture(names, weights) -> str:
    """The singers that make up most of a mixture: "alto:0.61,bass:0.32"."""
    parts = sorted(zip(weights, names, strict=True), reverse=True)
    return ",".join(f"{name}:{weight:.2f}" for weight, name in parts if weight > 0.05)


def main(_, flags):
    from svc_jax import adaptation, bundles, export

    bundles.check_free(flags.output)
    model = bundles.load(flags.model)
    check(model, flags.name)
    heard = hear(model, flags.input)
    geometry = model.extractor.geometry
    clips = adaptation.cut(heard, geometry)
    adapted = adaptation.adapt(model, clips, finetune=flags.finetune, seed=flags.seed)

    names = [singer.name for singer in model.card.singers]
    nearest = adapted.singers.argmin()
    distances = {
        f"sung by {names[nearest]}, the nearest": float(adapted.singers[nearest]),
        f"by the mixture {mixture(names, adapted.weights)}": adapted.mixture,
        f"by {flags.name}": adapted.adapted,
    }
    print("spectral distance (L_recon) of the clips that were held out")
    for said, value in distances.items():
        print(f"  {value:.3f}  {said}")
    fall = 1 - adapted.adapted / adapted.singers[nearest]
    print(f"  {fall:.0%} nearer than the nearest")

    singer = adaptation.describe(flags.name, heard, geometry)
    grown = adaptation.with_singer(model, singer, adapted.params, adapted.voice)
    known, new = model_card.read(flags.model), model_card.stated(flags)
    statement = model_card.joined(known, new, flags.name)
    metrics = {f"L_recon of {flags.name} {key}": v for key, v in distances.items()}
    missing_files = {
        name: how
        for name, how in export.frozen_files(model.card).items()
        if not pathlib.Path(flags.model, name).exists()
    }
    output = pathlib.Path(flags.output)
    card = model_card.text(grown, output.name, statement, metrics, missing_files)
    bundles.save(grown, flags.model, output, files={bundles.README: card.encode()})
    print(f"wrote {output}")
    for said in model_card.missing(statement):
        print(f"warning: {said}; see --help")


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string(
        "model", None, "A workdir, or a folder made by export.", required=True
    )
    flags.DEFINE_string(
        "input", None, "Folder of recordings of one voice.", required=True
    )
    flags.DEFINE_string("name", None, "Of the new singer.", required=True)
    flags.DEFINE_string("output", None, "Folder to make.", required=True)
    flags.DEFINE_bool(
        "finetune",
        False,
        "The generator learns too: nearer, but the known voices change as well.",
    )
    flags.DEFINE_integer("seed", 0, "Of noise, and of the order of the clips.")
    model_card.define_flags()


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
