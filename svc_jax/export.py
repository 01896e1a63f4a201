"""Makes a folder of a trained model that converts on its own.

  python -m svc_jax.export --workdir runs/choir --output models/choir \\
      --license "CC BY-NC 4.0" --consent "in writing, 2026" --data "eight hours of songs"

Its README.md is a model card. What is written is heard once more and compared with the
run; what differs is not kept.
"""

import pathlib

from svc_jax import command_line, model_card


def frozen_files(card) -> dict[str, str]:
    """How to get the frozen networks that a model was exported without."""
    from data_pipeline import schema
    from svc_jax import bundles

    return {
        f"{schema.FROZEN}/{kind}.safetensors": (
            f"found by itself: {network} as published, sha256 {sha256}"
            if bundles.is_published(network, sha256)
            else f"put it there: frozen/{kind}.safetensors of the run, sha256 {sha256}"
        )
        for kind, (network, sha256) in bundles.frozen_networks(card).items()
    }


def main(_, flags):
    from svc_jax import bundles, parity, programs

    statement = model_card.stated(flags)
    metrics = model_card.read_report(flags.report) if flags.report else {}
    model = bundles.load(flags.workdir)
    files = frozen_files(model.card) if flags.no_frozen else {}
    name = pathlib.Path(flags.output).name
    card = model_card.text(model, name, statement, metrics, files)
    contents = {bundles.README: card.encode()}
    kept = bundles.rounded(model, flags.dtype)
    for name in flags.format:
        file, write = programs.FORMATS[name]
        contents[file] = write(kept)
    bundles.save(
        model,
        flags.workdir,
        flags.output,
        dtype=flags.dtype,
        with_frozen=not flags.no_frozen,
        files=contents,
    )
    print(f"wrote {flags.output}")
    if flags.dtype != "float32":
        apart = parity.distance(kept, parity.singing(model))
        print(f"{flags.dtype} differs from float32 by up to {apart:.2g} a sample")
    for said in model_card.missing(statement):
        print(f"warning: {said}; see --help")


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string("workdir", None, "Of the training run.", required=True)
    flags.DEFINE_string("output", None, "Folder to make.", required=True)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Of the parameters in the file."
    )
    flags.DEFINE_multi_enum(
        "format",
        [],
        ["stablehlo", "onnx"],
        "Beside the parameters: stablehlo, a program of JAX for CPU, CUDA and TPU; onnx,"
        " a graph that runs without JAX, written by jax2onnx.",
    )
    flags.DEFINE_bool(
        "no_frozen", False, "Leave CREPE and Wav2Letter out; the card says whence."
    )
    model_card.define_flags()
    flags.DEFINE_string("report", "", "report.json of svc_jax.evaluate, for the card.")


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
