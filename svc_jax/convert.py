"""Re-sings recordings in another voice.

  python -m svc_jax.convert --model runs/choir --singer alto --output out/ song.wav

Recordings of one voice alone: isolate the vocals of a mix first. The output is as long
as the input, at the model's sample rate.
"""

import pathlib

from svc_jax import command_line


def output_paths(inputs, output) -> list[pathlib.Path]:
    """Where each result goes: the named file for one input, else files in a folder.

    Raises:
      UserError: if two results would have one name, or that of an input.
    """
    from svc_jax import audio_files
    from svc_jax.errors import UserError

    output = pathlib.Path(output)
    if output.suffix.lower() in audio_files.EXTENSIONS and not output.is_dir():
        if len(inputs) > 1:
            raise UserError(
                f"--output {output}: a file, but {len(inputs)} inputs; name a folder."
            )
        paths = [output]
    else:
        names = [pathlib.Path(path).with_suffix(".wav").name for path in inputs]
        paths = [output / name for name in names]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice}: two inputs would be written there; rename one.")
    originals = {pathlib.Path(path).resolve() for path in inputs}
    for path in paths:
        if path.resolve() in originals:
            raise UserError(f"{path}: is an input; name another --output.")
    return paths


def main(argv, flags):
    from svc_jax.errors import UserError

    inputs = argv[1:]
    if not inputs:
        raise UserError("no recording is named; add one: ... song.wav")
    if (flags.singer is None) == (flags.mix is None):
        raise UserError(
            "name a voice by --singer NAME, or a mixture by --mix A:0.5,B:0.5."
        )

    import numpy as np

    from svc_jax import audio_files, bundles, synthesis

    paths = output_paths(inputs, flags.output)
    model = bundles.load(flags.model)
    # What cannot be sung is refused before any work.
    mix = {flags.singer: 1.0} if flags.mix is None else synthesis.parse_mix(flags.mix)
    synthesis.voice_of(model, mix)
    synthesis.transposition(flags.transpose, np.ones(1), 1.0)
    sample_rate = model.extractor.geometry.sample_rate
    for source, path in zip(inputs, paths, strict=True):
        recording = audio_files.read(source, sample_rate)
        audio, _ = synthesis.convert(
            model, recording.audio, mix, transpose=flags.transpose, seed=flags.seed
        )
        peak = abs(audio).max()
        changes = list(recording.changes)
        if peak > 1:
            audio = audio / peak
            changes.append(f"turned down by a factor of {peak:.2f} against clipping")
        audio_files.write(path, audio, sample_rate, recording.subtype)
        print(f"{path}" + (f" ({', '.join(changes)})" if changes else ""))


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string(
        "model", None, "A workdir, or a folder made by export.", required=True
    )
    flags.DEFINE_string("singer", None, "Whose voice.")
    flags.DEFINE_string(
        "mix", None, 'A virtual singer instead: "A:0.5,B:0.5", weights of sum 1.'
    )
    flags.DEFINE_string(
        "output", None, "Folder for the results, or a file name for one.", required=True
    )
    flags.DEFINE_string(
        "transpose", "mean", "mean (to the singer's range), octave, none, or semitones."
    )
    flags.DEFINE_integer("seed", 0, "Of the generator's noise.")


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__, takes_arguments=True)


if __name__ == "__main__":
    run()
