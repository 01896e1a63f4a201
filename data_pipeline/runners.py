"""Runners of Apache Beam by their names, with options as on a command line."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.portability import common_urns
from apache_beam.runners import create_runner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner

from svc_jax.errors import UserError


def pipeline(runner: str, options: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline for a runner.

    Args:
      runner: its name, or module.Class; DirectRunner is this machine.
      options: of Beam and the runner, as --region=europe-west1.

    Raises:
      UserError: if there is no such runner, or it cannot work with the options.
    """
    try:
        # By the name DirectRunner, Beam tries to download another one first.
        is_here = runner == "DirectRunner"
        chosen = FnApiRunner() if is_here else create_runner(runner)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"--runner={runner}: {_one_line(error)}; name another runner."
        ) from error
    # Without flags of its own it would read those of this program.
    parsed = PipelineOptions(flags=list(options))
    unknown = _unknown(parsed, options)
    # What a job server knows it says only when it is asked.
    if unknown and not isinstance(chosen, PortableRunner):
        raise UserError(
            f"--beam={unknown[0]}: no option of Beam or of {runner}; mend it, or leave"
            " it out."
        )
    _check_portable(chosen, runner, parsed.view_as(PortableOptions))
    try:
        return beam.Pipeline(chosen, parsed)
    except ValueError as error:
        raise UserError(
            f"--runner={runner}: {_one_line(error)}; give it its options with --beam."
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _unknown(parsed: PipelineOptions, options: Sequence[str]) -> list[str]:
    """Options that neither Beam nor an imported runner knows.

    Raises:
      UserError: if a value is not what its option takes.
    """
    unknown = []

    def refuse(message: str) -> NoReturn:
        raise UserError(f"--beam: {message}; mend it, or leave it out.")

    def parse(parser):  # which would print its long usage and exit
        parser.error = refuse
        unknown.extend(parser.parse_known_args(list(options))[1])

    parsed.get_all_options(add_extra_args_fn=parse, retain_unknown_options=True)
    return unknown


def _check_portable(chosen, runner: str, options: PortableOptions):
    """Refuses what a portable runner would stumble over when all is to begin."""
    kind = options.environment_type
    known = [name for name in dir(common_urns.environments) if name.isupper()]
    if kind and not kind.startswith("beam:env:") and kind not in ("LOOPBACK", *known):
        raise UserError(
            f"--beam=--environment_type={kind}: unknown; choose one of LOOPBACK,"
            f" {', '.join(known)}."
        )
    if type(chosen) is PortableRunner and not options.job_endpoint:
        raise UserError(
            f"--runner={runner}: does not know where to run; name a job server with"
            " --beam=--job_endpoint=HOST:PORT."
        )


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Says which options to look at where a part of Beam does not answer another.

    Raises:
      UserError: instead of what gRPC raises after a minute.
    """
    try:
        yield
    except grpc.FutureTimeoutError as error:
        raise UserError(
            "--runner, --beam: a job server or a worker does not answer; check"
            " --job_endpoint, and that no_proxy names localhost where there is a proxy."
        ) from error
