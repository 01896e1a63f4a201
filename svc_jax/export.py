"""Makes a folder of a trained model that converts on its own.

python -m svc_jax.export --workdir runs/choir --output models/choir
"""

from svc_jax import command_line


def main(_, flags):
    from svc_jax import bundles

    bundles.save(bundles.load(flags.workdir), flags.workdir, flags.output)
    print(f"wrote {flags.output}")


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string("workdir", None, "Of the training run.", required=True)
    flags.DEFINE_string("output", None, "Folder to make.", required=True)


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
