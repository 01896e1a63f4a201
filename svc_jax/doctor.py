"""Says what svc_jax runs on: what to paste into a bug report.

python -m svc_jax.doctor [--model models/choir]

Versions, devices, weights and where they are from, the cache, room on the disk, and
whether a model is whole. Nothing is downloaded or written.
"""

import os
import pathlib
import platform
import shutil

from svc_jax import command_line

PACKAGES = [
    "svc_jax",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "safetensors",
    "soundfile",
    "soxr",
    "h5py",
    "ml_collections",
    "optax",
    "orbax-checkpoint",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
    "apache-beam",
    "grain",
    "array-record",
    "librosa",
    "pyloudnorm",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "jax2onnx",
    "gradio",
    "torchcrepe",
]
GIB = 1 << 30


def versions() -> dict[str, str]:
    """Of Python, libsndfile and every package that is installed; the rest as missing."""
    from importlib import metadata

    import soundfile

    found = {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "libsndfile": soundfile.__libsndfile_version__,
    }
    missing = []
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    return {**found, "not installed": ", ".join(missing) or "nothing"}


def devices() -> dict[str, str]:
    """What computes: devices as JAX sees them, cores and memory."""
    import jax

    try:
        seen = f"{jax.default_backend()}: {', '.join(map(str, jax.devices()))}"
    except RuntimeError as error:  # a driver that is missing, say
        seen = f"none: {' '.join(str(error).split())}"
    found = {"devices": seen, "cores": str(os.cpu_count())}
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory"] = f"{memory / GIB:.1f} GiB"
    return found


def frozen_weights() -> dict[str, str]:
    """Each frozen network: where its weights are, or how to get them."""
    from svc_jax import published

    found = {}
    for network in published.PUBLISHED:
        held = published.find(network)
        found[network] = held[2] if held else f"missing; {published.remedies(network)}"
    return found


def places() -> dict[str, str]:
    """The cache, and room on the disks of the cache and of this folder."""
    from svc_jax import published

    cache = published.cache_dir()
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
    names = ("SVC_JAX_CACHE", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    return {
        "cache": f"{cache}, {size / 2**20:.0f} MiB"
        if cache.is_dir()
        else f"{cache}, none",
        "room for the cache": _room(cache),
        "room here": _room(pathlib.Path.cwd()),
        **{name: os.environ[name] for name in names if name in os.environ},
    }


def model(path: str) -> dict[str, str]:
    """A model that is whole; else what is wrong with it."""
    from svc_jax import bundles
    from svc_jax.errors import UserError

    try:
        held = bundles.load(path)
    except UserError as error:
        return {"damaged": str(error)}
    return {
        "whole": path,
        "generator": held.config.generator.name,
        "sample rate": f"{held.card.sample_rate} Hz",
        "pitch, content": ", ".join(
            f"{network} {sha256 and sha256[:8]}..."
            for network, sha256 in bundles.frozen_networks(held.card).values()
        ),
        "singers": str(len(held.card.singers)),
    }


def _room(folder: pathlib.Path) -> str:
    """Free space where a folder is, or would be made."""
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / GIB:.1f} GiB free"


def main(_, flags):
    reports = {
        "versions": versions(),
        "machine": devices(),
        "weights": frozen_weights(),
        "places": places(),
    }
    if flags.model:
        reports["model"] = model(flags.model)
    for title, values in reports.items():
        print(f"{title}:")
        for name, value in values.items():
            print(f"  {name + ':':24s} {value}")


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string("model", None, "Also look at a workdir or an export.")


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
