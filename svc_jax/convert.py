"""Re-sings recordings in another voice.

  python -m svc_jax.convert --model models/choir --singer alto --output out/ song.wav
  python -m svc_jax.convert --model models/choir --singer alto --output - - < in.wav > out.wav

Takes files, folders, patterns ("songs/**/*.flac") and - for the standard input; any
sample rate, length, sample format and number of channels. The output is mono and as long
as the input. Recordings of one voice alone: isolate the vocals of a mix first, for
accompaniment and harmony are heard as pitch.
"""

import dataclasses
import glob
import pathlib
import shutil
import sys
import tempfile

from svc_jax import command_line

STREAM = "-"  # the standard input or output
MAX_GAIN_DB = 60.0


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording to convert.

    Attributes:
      path: of its file, or STREAM.
      name: of the result in a folder.
    """

    path: str
    name: str


def find_sources(arguments) -> list[Source]:
    """The recordings that arguments name: files, folders, patterns, or STREAM.

    Raises:
      UserError: for a folder without audio, or a pattern that nothing matches.
    """
    from svc_jax import audio_files
    from svc_jax.errors import UserError

    found = []
    for argument in map(str, arguments):
        path = pathlib.Path(argument)
        if argument == STREAM:
            found.append((argument, pathlib.Path("stdin")))
        elif path.is_dir():
            files = audio_files.find(path)
            if not files:
                raise UserError(f"{argument}: holds no audio files; check the path.")
            found += [(file, file.relative_to(path)) for file in files]
        elif path.exists() or not glob.has_magic(argument):
            found.append((argument, path.name))
        else:
            files = sorted(filter(_is_file, glob.glob(argument, recursive=True)))
            if not files:
                raise UserError(f"{argument}: nothing matches; check the pattern.")
            found += [(file, pathlib.Path(file).name) for file in files]
    return [
        Source(str(path), str(pathlib.Path(name).with_suffix(".wav")))
        for path, name in found
    ]


def _is_file(path: str) -> bool:
    return pathlib.Path(path).is_file()


def output_paths(sources: list[Source], output: str) -> list[pathlib.Path]:
    """Where each result goes: the named file for one source, else files in a folder.

    Raises:
      UserError: if two results would have one name, or that of a source.
    """
    from svc_jax import audio_files
    from svc_jax.errors import UserError

    folder = pathlib.Path(output)
    is_file = folder.suffix.lower() in audio_files.EXTENSIONS and not folder.is_dir()
    if (is_file or output == STREAM) and len(sources) > 1:
        raise UserError(
            f"--output {output}: one file, but {len(sources)} inputs; name a folder."
        )
    if output == STREAM:
        return [folder]
    if is_file:
        paths = [folder]
    else:
        paths = [folder / source.name for source in sources]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice}: two inputs would be written there; rename one.")
    originals = {pathlib.Path(source.path).resolve() for source in sources}
    for path in paths:
        if path.resolve() in originals:
            raise UserError(f"{path}: is an input; name another --output.")
    return paths


def wish_of(flags, num_sources: int):
    """conversion.Wish of the flags.

    Raises:
      UserError: if no voice is named, or what can only be wished for one recording is
        wished for several.
    """
    from svc_jax import conversion, synthesis
    from svc_jax.errors import UserError

    if (flags.singer is None) == (flags.mix is None):
        raise UserError(
            "name a voice by --singer NAME, or a mixture by --mix A:0.5,B:0.5."
        )
    if not abs(flags.loudness) <= MAX_GAIN_DB:
        raise UserError(
            f"--loudness {flags.loudness:g}: choose from -{MAX_GAIN_DB:g} to"
            f" {MAX_GAIN_DB:g} dB."
        )
    for name in ("f0", "save_f0"):
        if flags[name].value and num_sources > 1:
            raise UserError(
                f"--{name} {flags[name].value}: one table, but {num_sources} inputs;"
                " convert one at a time."
            )
    # A table says what is to be sung.
    transpose = flags.transpose or ("none" if flags.f0 else "mean")
    return conversion.Wish(
        {flags.singer: 1.0} if flags.mix is None else synthesis.parse_mix(flags.mix),
        transpose,
        flags.seed,
        flags.sample_rate == "keep",
        flags.loudness,
        flags.f0,
        flags.save_f0,
    )


def convert_one(model, source: Source, path: pathlib.Path, wish) -> list[str]:
    """Converts a recording; the standard input and output by way of temporary files.

    Returns:
      What was done to the audio, in words.
    """
    from svc_jax import audio_files, conversion
    from svc_jax.errors import UserError

    try:
        with tempfile.TemporaryDirectory() as folder:
            given, made = source.path, path
            if source.path == STREAM:
                given = pathlib.Path(folder, "stdin")
                with given.open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
            if path == pathlib.Path(STREAM):
                made = pathlib.Path(folder, "stdout.wav")
            changes = conversion.convert(model, given, made, wish)
            if made != path:
                with made.open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()
    except OSError as error:
        raise UserError(
            f"{source.path}: cannot pass by way of {tempfile.gettempdir()}"
            f" ({audio_files.reason(error)}); make room there, or name files."
        ) from error
    return changes


def main(argv, flags):
    from svc_jax.errors import UserError

    if not argv[1:]:
        raise UserError("no recording is named; add one: ... song.wav")
    sources = find_sources(argv[1:])
    wish = wish_of(flags, len(sources))
    paths = output_paths(sources, flags.output)

    import numpy as np
    import tqdm

    from svc_jax import bundles, synthesis

    model = bundles.load(flags.model)
    # What cannot be sung is refused before any work.
    synthesis.voice_of(model, wish.mix)
    synthesis.transposition(wish.transpose, np.ones(1), 1.0)
    # The standard output may be the recording.
    told = sys.stderr if flags.output == STREAM else sys.stdout
    failed = []
    jobs = list(zip(sources, paths, strict=True))
    for source, path in tqdm.tqdm(jobs, unit="file", disable=None):
        try:
            changes = convert_one(model, source, path, wish)
        except UserError as error:
            if len(jobs) == 1:
                raise
            failed.append(error)
            continue
        line = f"{path}" + (f" ({', '.join(changes)})" if changes else "")
        tqdm.tqdm.write(line, file=told)
    if failed:
        print(f"{len(failed)} of {len(jobs)} recordings failed:", file=sys.stderr)
        for error in failed:
            print(f"  {error}", file=sys.stderr)
        return 1
    return 0


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
        "output",
        None,
        "Folder for the results, a file name for one, or - for the standard output.",
        required=True,
    )
    flags.DEFINE_enum(
        "sample_rate", "keep", ["keep", "model"], "Of the results: the source's own."
    )
    flags.DEFINE_string(
        "transpose",
        None,
        "mean (to the singer's range), octave, none, or semitones; by default mean, and"
        " none with --f0.",
    )
    flags.DEFINE_float("loudness", 0.0, "Louder or softer singing, in dB.")
    flags.DEFINE_string(
        "f0", "", "CSV of seconds,f0_hz: the pitch to sing instead of the source's."
    )
    flags.DEFINE_string("save_f0", "", "Write the pitch that was sung, for --f0.")
    flags.DEFINE_integer("seed", 0, "Of the generator's noise.")


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__, takes_arguments=True)


if __name__ == "__main__":
    run()
