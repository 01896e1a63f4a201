"""What every entry point shares: flags, one-line errors, exit codes."""

import sys

from absl import app, logging

from svc_jax.errors import UserError


def define_config():
    """A --config=FILE.py[:variant] flag, with --config.key=value for every key."""
    from ml_collections import config_flags

    return config_flags.DEFINE_config_file("config", None, "Config file[:variant].")


def run(main):
    """Runs main(argv); a UserError ends with its one line and exit code 2."""

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)
