"""What every entry point shares: one line for what a user got wrong, and exit code 2."""

import os
import pathlib
import subprocess
import sys
import types

import pytest
from absl import flags

from data_pipeline import prepare
from svc_jax import (
    command_line,
    convert,
    evaluate,
    evaluate_asr,
    export,
    train,
    train_asr,
    weights,
)
from svc_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENTRY_POINTS = (
    prepare,
    convert,
    evaluate,
    evaluate_asr,
    export,
    train,
    train_asr,
    weights,
)


def entry_point(main, define_flags=lambda: None, **options):
    """A module with a `run`, for the fixture `start`."""
    description = "Does it.\n\nMore of it.\n"
    run = lambda: command_line.run(main, define_flags, description, **options)
    return types.SimpleNamespace(__name__="entry_point", run=run)


def define_some():
    flags.DEFINE_string("source", None, "Where from.", required=True)
    flags.DEFINE_string("target", None, "Where to.", required=True)
    flags.DEFINE_enum("way", "short", ["short", "long"], "Which way.")
    flags.DEFINE_integer("speed", 3, "How fast.", lower_bound=1)


# Ends.


def test_what_is_left_of_the_arguments_goes_to_main_with_the_flags(start):
    seen = []

    def main(argv, values):
        seen.append((argv[1:], values.source, values.target, values.way, values.speed))

    module = entry_point(main, define_some, takes_arguments=True)
    arguments = ["a.wav", "--source=x", "--target", "y", "--speed=4", "b.wav"]
    assert start(module, *arguments) == (0, "", "")
    assert seen == [(["a.wav", "b.wav"], "x", "y", "short", 4)]


def test_user_error_is_one_line_and_exit_code_2(start):
    def main(argv, values):
        raise UserError("x.wav: no such file; check the path.")

    said = "error: x.wav: no such file; check the path.\n"
    assert start(entry_point(main)) == (2, "", said)


def test_an_error_of_ours_keeps_its_traceback(start):
    def main(argv, values):
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        start(entry_point(main))


def test_words_that_mean_nothing_are_refused(start):
    said = "error: 'song.wav' is no flag; see --help.\n"
    assert start(entry_point(lambda *_: None), "song.wav") == (2, "", said)


# Flags.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source=x"], "--target must be given"),
        ([], "--source and --target must be given"),
        (["--surce=x"], "Unknown command line flag 'surce'. Did you mean: source ?"),
        (["--source"], "Missing value for flag --source"),
        (["--way=far"], "flag --way=far: value should be one of <short|long>"),
        (["--speed=fast"], "flag --speed=fast: invalid literal for int() with base 10"),
        (["--speed=0"], "flag --speed=0: 0 is not"),
    ],
)
def test_wrong_flags_are_one_line(start, arguments, said):
    def main(argv, values):
        raise AssertionError("started with wrong flags")

    code, out, err = start(entry_point(main, define_some), *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.endswith("; see --help.\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_has_the_description_and_every_own_flag(start, asked):
    def main(argv, values):
        raise AssertionError("started instead of helping")

    module = entry_point(main, define_some)
    code, out, err = start(module, "--source=x", asked, "--config=missing.py")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "Does it.",
        "",
        "More of it.",
        "",
        "Flags:",
        "  --source",
        "      Where from.",
        "  --speed [3]",
        "      How fast.",
        "  --target",
        "      Where to.",
        "  --way [short]",
        "      <short|long>: Which way.",
    ]


def test_flags_are_defined_by_the_entry_point_that_runs(start):
    before = set(flags.FLAGS)
    for module in ENTRY_POINTS:
        assert start(module, "--help")[0] == 0
    # Nor were they by being imported: two of them define --output.
    assert set(flags.FLAGS) == before
    assert not before & {"output", "model", "workdir", "config"}


# Configs.


@pytest.fixture
def config_file(tmp_path) -> pathlib.Path:
    path = tmp_path / "config.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(variant='base'):\n"
        "    if variant not in ('base', 'small'):\n"
        "        raise ValueError(f'there are base and small, not {variant!r}.')\n"
        "    config = ml_collections.ConfigDict({'size': 3, 'data': {'dir': ''}})\n"
        "    config.variant = variant\n"
        "    return config\n"
    )
    return path


@pytest.mark.parametrize(
    ("suffix", "overrides", "expected"),
    [
        ("", [], ("base", 3, "")),
        (":small", ["--config.size=5", "--config.data.dir=x/y"], ("small", 5, "x/y")),
    ],
)
def test_config_comes_from_a_file_and_the_command_line(
    start, config_file, suffix, overrides, expected
):
    seen = []

    def main(argv, values):
        config = values.config
        seen.append((config.variant, config.size, config.data.dir, config.is_locked))

    module = entry_point(main, command_line.define_config)
    assert start(module, f"--config={config_file}{suffix}", *overrides)[0] == 0
    assert seen == [(*expected, True)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--config must be given"),
        (["--config="], "--config: Path to config file is an empty string"),
        (["--config=no.py"], "--config: No such file or directory: 'no.py'"),
        (["--config=."], "--config: Is a directory: '.'"),
        (
            ["--config=FILE:big"],
            "flag --config=FILE:big: there are base and small, not",
        ),
        (["--config=FILE", "--config.nope=1"], "--config: unknown name: nope"),
        (
            ["--config=FILE", "--config.sise=1"],
            "--config: unknown name: sise; did you mean size instead of sise?",
        ),
        (["--config=FILE", "--config.data.x=1"], "--config: unknown name: x"),
        (["--config=FILE", "--config.dada.x=1"], "--config: unknown name: dada"),
        (["--config=FILE", "--config.size=x"], "flag --config.size=x: invalid literal"),
        (["--config.size=1", "--config=FILE"], "Found --config.size=1 in argv before"),
    ],
)
def test_wrong_configs_are_one_line(start, config_file, arguments, said):
    def main(argv, values):
        raise AssertionError("started with a wrong config")

    module = entry_point(main, command_line.define_config)
    arguments = [a.replace("FILE", str(config_file)) for a in arguments]
    code, out, err = start(module, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: " + said.replace("FILE", str(config_file)))
    assert err.endswith("; see --help.\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("variant", ["multi.py:nope", "asr.py:nope", "single.py:nope"])
def test_unknown_variants_of_our_configs_are_refused(start, variant):
    path = ROOT / "configs" / variant
    code, _, err = start(train, f"--config={path}", "--workdir=x")
    assert code == 2
    assert err.startswith(f"error: flag --config={path}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--config.geometry.hop_length=80"],
            "the dataset's hop_length is 64, the config's 80; prepare the dataset again",
        ),
        (["--config.data.dir=EMPTY"], "EMPTY: no singers.json, so neither dataset nor"),
        (
            ["--config.data.dir="],
            "config.data.dir is empty; name a dataset with --conf",
        ),
        (
            ["--workdir=RUN", "--config.seed=7"],
            "RUN: holds a run of another config (se",
        ),
    ],
)
def test_a_run_that_cannot_be_is_one_line(
    start, tiny_config, model_workdir, tmp_path, flags, said
):
    config = tmp_path / "config.py"
    config.write_text(
        "import ml_collections\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict({tiny_config().to_dict()!r})\n"
    )
    places = {"RUN": str(model_workdir), "EMPTY": str(tmp_path)}
    for name, place in places.items():
        flags = [flag.replace(name, place) for flag in flags]
        said = said.replace(name, place)
    workdir = tmp_path / "run"
    code, out, err = start(train, f"--config={config}", f"--workdir={workdir}", *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert not (workdir / "checkpoints").exists()


# As processes, in which absl parses and catches.


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("svc_jax.convert", ["--singr=x"], "Unknown command line flag 'singr'"),
        ("svc_jax.train", ["--config=no.py"], "--config: No such file or directory"),
        (
            "svc_jax.convert",
            ["--model=nowhere", "--singer=x", "--output=out", "a.wav"],
            "nowhere: no such folder; --model is a workdir or an export.",
        ),
    ],
)
def test_a_process_ends_with_one_line_and_exit_code_2(
    tmp_path, module, arguments, said
):
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 2
    assert child.stdout == ""
    assert child.stderr.startswith(f"error: {said}")
    assert child.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
