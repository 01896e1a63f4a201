"""What every entry point shares: help, one-line errors, exit codes."""

import sys

from absl import app, flags, logging

from svc_jax.errors import UserError


def define_config():
    """A --config=FILE.py[:variant] flag, with --config.key=value for every key."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "Config file, FILE.py[:variant].")
    flags.mark_flag_as_required("config")


def run(main, define_flags, description: str):
    """Runs an entry point.

    Flags are defined here and not on import, so that one entry point can call another's
    functions. A UserError ends with its one line and exit code 2.

    Args:
      main: called with what is left of argv and the flags.
      define_flags: defines them.
      description: the module's docstring, for --help.
    """
    own = set(flags.FLAGS)
    define_flags()
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(help_text(description, sorted(set(flags.FLAGS) - own)))
        sys.exit(0)

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)
        try:
            return main(argv, flags.FLAGS)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f"error: {error}; see --help.", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=parse)


def help_text(description: str, names: list[str]) -> str:
    """The description and a line for each flag."""
    lines = [description.strip(), "", "Flags:"]
    for name in names:
        flag = flags.FLAGS[name]
        if isinstance(flag, flags.EnumFlag):
            values = f" ({', '.join(flag.parser.enum_values)})"
        else:
            values = ""
        default = "" if flag.default is None else f" [{flag.default}]"
        lines.append(f"  --{name}{default}{values}\n      {flag.help}")
    return "\n".join(lines)
