"""Frozen weights, from a path, the cache, an installed package or a download.

  python -m svc_jax.weights list
  python -m svc_jax.weights fetch wav2letter
  python -m svc_jax.weights fetch wav2letter --from wav2letter.h5

What is found without a path has the hash of a published file. A file named by its path
is taken whatever its hash; the hash goes with it into datasets and models. Either way
each array is checked against the network it is for. The cache is $SVC_JAX_CACHE, or
the platform's own; a download that broke off goes on where it stopped.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from svc_jax import command_line, published, weight_files
from svc_jax.errors import UserError

Shapes = dict[str, dict[str, tuple[int, ...]]]  # layer -> weight -> shape


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's parameters and where they are from."""

    params: dict[str, dict[str, np.ndarray]]  # float32, the tree of the flax module
    sha256: str  # of the file as found
    source: str  # a path, package or address, for people
    config: dict[str, Any]  # what it takes to build the network


Reader = Callable[[weight_files.WeightFile, str], Weights]


def crepe(
    capacity: str = "tiny",
    path: str | os.PathLike | None = None,
    *,
    allow_download: bool = True,
) -> Weights:
    """CREPE's weights, for `models.crepe.Crepe(capacity)`."""
    return _load(f"crepe-{capacity}", path, allow_download)


def wav2letter(
    path: str | os.PathLike | None = None, *, allow_download: bool = True
) -> Weights:
    """Wav2Letter's weights, Arm's or our own, for `models.wav2letter.Wav2Letter`."""
    return _load("wav2letter", path, allow_download)


def save_wav2letter(
    path: str | os.PathLike, params: dict, config: dict[str, Any]
) -> None:
    """Writes Wav2Letter's weights to a .safetensors file that `wav2letter` reads."""
    config = {**config, "labels": list(config["labels"])}
    expected = _wav2letter_shapes(config, path)
    found = {
        layer: {weight: array.shape for weight, array in weights.items()}
        for layer, weights in params.items()
    }
    if found != expected:
        raise ValueError(f"Wav2Letter has the shapes {expected}, params {found}.")
    weight_files.save_safetensors(path, params, config, kind="wav2letter")


def fetch(network: str) -> pathlib.Path:
    """Where a published file of a network lies, downloaded if need be."""
    read = _reader(network)
    path, data, source = published.find(network) or published.download(network)
    read(weight_files.parse(path, data), source)
    return path


def import_file(network: str, path: str | os.PathLike) -> tuple[pathlib.Path, bool]:
    """Copies a file that fits a network into the cache; see `published.keep`."""
    read = _reader(network)
    path = pathlib.Path(path).expanduser()
    data = weight_files.read_bytes(path)
    read(weight_files.parse(path, data), str(path))
    return published.keep(network, path.name, data)


def _load(network, path, allow_download) -> Weights:
    """The weights at the path, or else of a published file."""
    read = _reader(network)
    if path is not None:
        path = pathlib.Path(path).expanduser()
        return read(weight_files.parse(path, weight_files.read_bytes(path)), str(path))
    found = published.find(network)
    if found is None:
        if not allow_download:
            raise published.missing(network)
        found = published.download(network)
    path, data, source = found
    return read(weight_files.parse(path, data), source)


def _reader(network: str) -> Reader:
    """What makes Weights of a WeightFile and its source, if they fit the network."""
    from svc_jax.models.crepe import CAPACITIES

    readers: dict[str, Reader] = {
        f"crepe-{capacity}": functools.partial(_crepe, capacity)
        for capacity in CAPACITIES
    }
    readers["wav2letter"] = _wav2letter
    if network not in readers:
        raise UserError(f"No network is called {network!r}, but {', '.join(readers)}.")
    return readers[network]


def _crepe(capacity: str, file: weight_files.WeightFile, source: str) -> Weights:
    config = {"capacity": capacity}
    if file.layout == "svc_jax" and _own_config(file, "crepe") != config:
        raise UserError(f"Weights {file.path} are of another CREPE than {capacity}.")
    params = _params(file, _crepe_shapes(capacity), _crepe_place)
    return Weights(params, file.sha256, source, config)


def _wav2letter(file: weight_files.WeightFile, source: str) -> Weights:
    if file.layout == "svc_jax":
        config = _own_config(file, "wav2letter")
    else:
        file, config = _arms_wav2letter(file)
    shapes = _wav2letter_shapes(config, file.path)
    params = _params(file, shapes, _wav2letter_place)
    return Weights(params, file.sha256, source, config)


# Networks: the shapes of their parameters, and where the layouts keep them.


def _crepe_shapes(capacity: str) -> Shapes:
    from svc_jax.models.crepe import FRAME_LENGTH, Crepe

    return _shapes(Crepe(capacity), (1, FRAME_LENGTH))


_NORM_NAMES = {
    "svc_jax": ("scale", "bias", "mean", "var"),
    "keras": ("gamma", "beta", "moving_mean", "moving_variance"),
    "torch": ("weight", "bias", "running_mean", "running_var"),
}


def _crepe_place(layout: str, layer: str, weight: str, shape: tuple):
    """The name of a parameter in a file, and the shape it has there."""
    if layout == "svc_jax":
        return f"{layer}/{weight}", shape
    if layer.startswith("norm"):
        block = layer.replace("norm", "conv")
        block += "-BN/" if layout == "keras" else "_BN."
        index = _NORM_NAMES["svc_jax"].index(weight)
        return block + _NORM_NAMES[layout][index], shape
    # Both have 2-D convolutions, one wide: [k, 1, in, out] and [out, in, k, 1].
    if layout == "keras":
        shape = (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
        return f"{layer}/{weight}", shape
    shape = (1, *shape) if len(shape) == 3 else shape
    return f"{layer}.{weight.replace('kernel', 'weight')}", shape[::-1]


def _wav2letter_shapes(config: dict[str, Any], path) -> Shapes:
    from svc_jax.models.wav2letter import Wav2Letter

    fields = ("channels", "wide_channels", "num_labels", "kernels", "wide_kernel")
    sizes = {name: config[name] for name in fields if name in config}
    flat = [n for value in sizes.values() for n in np.ravel(value).tolist()]
    if not all(type(n) is int and n > 0 for n in flat):
        raise UserError(f"Weights {path} have impossible sizes: {sizes}.")
    match config:
        case {"labels": [*labels], "num_labels": number} if len(labels) == number:
            pass
        case _:
            raise UserError(f"Weights {path} do not name as many labels as they have.")
    if "kernels" in sizes:
        sizes["kernels"] = tuple(sizes["kernels"])
    return _shapes(Wav2Letter(**sizes), (1, 2, 39))


def _wav2letter_place(layout: str, layer: str, weight: str, shape: tuple):
    """The name of a parameter in a file, and the shape it has there."""
    wide = layout == "keras" and weight == "kernel"  # Keras has [1, k, in, out]
    return f"{layer}/{weight}", (1, *shape) if wide else shape


def _arms_wav2letter(file: weight_files.WeightFile):
    """Arm's file with our names of the layers, which there are numbered; its config."""
    from svc_jax.models.wav2letter import LETTERS

    ours = [*(f"conv{i}" for i in range(1, 9)), "wide1", "wide2", "output"]
    theirs = list(dict.fromkeys(name.rpartition("/")[0] for name in file.arrays))
    if file.layout != "keras" or len(theirs) != len(ours):
        raise UserError(
            f"Weights {file.path} have {len(theirs)} layers in the layout of "
            f"{file.layout}; Wav2Letter's are {len(ours)} of Keras."
        )
    layer_of = dict(zip(theirs, ours, strict=True))
    arrays = {}
    for name, array in file.arrays.items():
        layer, _, weight = name.rpartition("/")
        arrays[f"{layer_of[layer]}/{weight}"] = array
    config = {
        "channels": np.size(arrays.get("conv1/bias", ())),
        "wide_channels": np.size(arrays.get("wide1/bias", ())),
        "num_labels": len(LETTERS),
        "labels": list(LETTERS),
    }
    return dataclasses.replace(file, arrays=arrays), config


def _shapes(network, example: tuple[int, ...]) -> Shapes:
    import jax
    import jax.numpy as jnp

    def init():
        return network.init(jax.random.key(0), jnp.zeros(example))["params"]

    return jax.tree.map(lambda array: array.shape, jax.eval_shape(init))


def _own_config(file: weight_files.WeightFile, kind: str) -> dict[str, Any]:
    if file.metadata["kind"] != kind:
        raise UserError(
            f"Weights {file.path} are of a {file.metadata['kind']}, not of a {kind}."
        )
    return file.metadata["config"]


def _params(file: weight_files.WeightFile, shapes: Shapes, place) -> dict:
    """The flax tree of a file's arrays, each of which must be as expected."""
    params, arrays = {}, dict(file.arrays)
    for layer, weights in shapes.items():
        params[layer] = {}
        for weight, shape in weights.items():
            name, expected = place(file.layout, layer, weight, shape)
            found = arrays.pop(name, None)
            if found is None:
                raise UserError(f"Weights {file.path} lack the array {name}.")
            if found.shape != expected or found.dtype.kind != "f":
                raise UserError(
                    f"Weights {file.path} hold {name} as {found.dtype} {found.shape}; "
                    f"expected float32 {expected}. Is the file of another size?"
                )
            if not np.isfinite(found).all():
                raise UserError(f"Weights {file.path} hold NaN or infinity in {name}.")
            found = found.T if file.layout == "torch" else found
            params[layer][weight] = np.array(
                found.reshape(shape), np.float32, order="C"
            )
    # Torch counts the batches its norms have seen.
    extra = [name for name in arrays if not name.endswith("num_batches_tracked")]
    if extra:
        raise UserError(f"Weights {file.path} hold {extra[0]}, which nothing needs.")
    return params


def listing() -> list[str]:
    """A line for each file in its place, and each network that has none."""
    lines = [f"cache: {published.cache_dir()}"]
    for network in published.PUBLISHED:
        found = published.find(network)
        where = found[2] if found else f"missing; {published.remedies(network)}"
        lines.append(f"{network}: {where}")
        for path in published.kept(network):
            lines.append(f"{network}: {path}, where it is named")
    return lines


def main(argv, flags):
    source = flags["from"].value
    match argv[1:]:
        case ["list"] if source is None:
            print("\n".join(listing()))
        case ["fetch", network] if source is None:
            print(f"{network}: {fetch(network)}")
        case ["fetch", network]:
            path, is_published = import_file(network, source)
            print(f"{network}: {path}")
            if not is_published:
                option = network.partition("-")[0]
                print(
                    "No published file: it is used where it is named, as in "
                    f"`python -m data_pipeline.prepare --{option} {path}`."
                )
        case _:
            raise UserError("say `list` or `fetch NETWORK [--from FILE]`; see --help.")


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string("from", None, "File to import, instead of a download.")


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__, takes_arguments=True)


if __name__ == "__main__":
    run()
