"""What every entry point shares: help, one-line errors, exit codes."""

import re
import sys

from absl import app, flags, logging

from svc_jax.errors import UserError


def define_config():
    """A --config=FILE.py[:variant] flag, with --config.key=value for every key."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "Config file, FILE.py[:variant].")
    flags.mark_flag_as_required("config")


def run(main, define_flags, description: str, *, takes_arguments: bool = False):
    """Runs an entry point.

    Flags are defined here and not on import, so that one entry point can call another's
    functions. A UserError ends with its one line and exit code 2.

    Args:
      main: called with what is left of argv and the flags.
      define_flags: defines them.
      description: the module's docstring, for --help.
      takes_arguments: whether words that are no flags mean anything to it.
    """
    own = set(flags.FLAGS)
    define_flags()
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(help_text(description, sorted(set(flags.FLAGS) - own)))
        sys.exit(0)

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().addFilter(_has_no_traceback)
        try:
            if argv[1:] and not takes_arguments:
                raise UserError(f"{argv[1]!r} is no flag; see --help.")
            return main(argv, flags.FLAGS)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            if "config" in flags.FLAGS:
                # A file that could not be read raises only when it is looked into.
                flags.FLAGS.config.lock()
            return rest
        except (flags.Error, AttributeError, KeyError, OSError) as error:
            print(f"error: {one_line(error)}; see --help.", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=parse)


def _has_no_traceback(record) -> bool:
    """Drops from the log what a library logs of an error that it also raises."""
    return not record.exc_info


def one_line(error: Exception) -> str:
    """What is wrong with the flags, without tracebacks and repetitions."""
    text = str(error).strip().rstrip(".")
    if isinstance(error, AttributeError | KeyError):
        # Of ml_collections: a key quoted and escaped, perhaps with a suggestion.
        said = re.sub(r"[\\'\"]", "", text.replace("\\n", " "))
        said = " ".join(said.split()).replace(" Did", "; did")
        return f"--config: unknown name: {said}"
    if isinstance(error, OSError):
        said = text.rpartition("failure to load: ")[2].splitlines()[-1].strip()
        return "--config: " + re.sub(r"^\[Errno \d+\] ", "", said)
    flag, is_from_file, trace = text.partition(": Error whilst parsing config file:")
    if is_from_file:
        return f"{flag}: {trace.splitlines()[-1].partition(': ')[2]}"
    missing = re.findall(r"^flag --(\w+)=None: Flag", text, re.MULTILINE)
    if missing:
        return " and ".join(f"--{name}" for name in missing) + " must be given"
    return " ".join(text.split())


def help_text(description: str, names: list[str]) -> str:
    """The description and a line for each flag."""
    lines = [description.strip(), "", "Flags:"]
    for name in names:
        flag = flags.FLAGS[name]
        default = "" if flag.default is None else f" [{flag.default}]"
        lines.append(f"  --{name}{default}\n      {flag.help}")
    return "\n".join(lines)
