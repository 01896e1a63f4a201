"""What is said of runners and options of Beam that cannot work."""

import socket

import pytest

from data_pipeline import prepare, runners
from svc_jax.errors import UserError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--runner=NoSuchRunner"],
            "--runner=NoSuchRunner: Unexpected pipeline runner",
        ),
        (
            ["--runner=no.such.Runner"],
            "--runner=no.such.Runner: No module named 'no'; ",
        ),
        (
            ["--runner=data_pipeline.Runner"],
            "--runner=data_pipeline.Runner: module 'da",
        ),
        (
            ["--runner=DataflowRunner"],
            "--runner=DataflowRunner: Pipeline has validatio",
        ),
        (
            ["--runner=PortableRunner"],
            "--runner=PortableRunner: does not know where to",
        ),
        (["--beam=--no_such=3"], "--beam=--no_such=3: no option of Beam or of Direct"),
        (
            ["--beam=no_dashes"],
            "--beam=no_dashes: no option of Beam or of DirectRunner",
        ),
        (
            ["--beam=--job_endpoint"],
            "--beam: argument --job_endpoint: expected one arg",
        ),
        (
            ["--beam=--direct_num_workers=many"],
            "--beam: argument --direct_num_workers: invalid int value: 'many'; mend it",
        ),
        (
            ["--beam=--environment_type=DOCKR"],
            "--beam=--environment_type=DOCKR: unknown; choose one of LOOPBACK, ",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    start, recordings, tmp_path, options, said
):
    code, out, err = start(
        prepare, f"--input={recordings}", f"--output={tmp_path / 'choir'}", *options
    )
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_that_only_a_job_server_knows_are_passed_on():
    options = ["--job_endpoint=embed", "--parallel_songs=3"]
    made = runners.pipeline("PortableRunner", options)
    known = made.options.get_all_options(retain_unknown_options=True)
    assert known["parallel_songs"] == "3"


def test_a_job_server_that_does_not_answer_is_named():
    import apache_beam as beam

    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        options = [
            f"--job_endpoint=localhost:{silent.getsockname()[1]}",
            "--job_server_timeout=1",
            "--environment_type=LOOPBACK",
        ]
        made = runners.pipeline("PortableRunner", options)
        with (
            pytest.raises(UserError, match="does not answer; check --job_endpoint"),
            runners.answering(),
            made,
        ):
            _ = made | beam.Create([1])
