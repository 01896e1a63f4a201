"""Weight files, read without unpickling: Keras HDF5, torch zip archives, safetensors.

A reader takes the bytes of a file, bounded by `MAX_BYTES`, and gives its arrays under
the names and in the layout they have there; `weights.py` knows what they ought to be.
"""

import bz2
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import pickletools
import uuid
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from svc_jax.errors import UserError

# Five times the largest file we read: what is beyond it is a mistake or an attack.
MAX_BYTES = 1 << 29
MAX_PICKLE_BYTES = 1 << 20

_Contents = tuple[dict[str, np.ndarray], dict[str, Any]]  # arrays, metadata

# What the parsers below raise on bytes that are not what they should be.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The arrays of one file, as found."""

    path: pathlib.Path
    sha256: str
    layout: str  # 'keras', 'torch' or 'svc_jax'
    arrays: dict[str, np.ndarray]  # in the file's order
    metadata: dict[str, Any]  # 'kind' and 'config' of our own files, else empty


def read_bytes(path: pathlib.Path) -> bytes:
    """The whole file, refused when it is larger than any weights of ours."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"Weights {path} cannot be read: {error.strerror}.") from error
    return _bounded(path, data)


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file under a temporary name, then gives it its own."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def parse(path: pathlib.Path, data: bytes) -> WeightFile:
    """The arrays in the bytes of a file; the end of its name tells the format."""
    for suffix, (layout, reader) in _READERS.items():
        if path.name.lower().endswith(suffix):
            break
    else:
        raise UserError(f"Weights {path}: the name must end in {', '.join(_READERS)}.")
    try:
        arrays, metadata = reader(path, data)
    except UserError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"Weights {path} are damaged, or not {suffix} at all: {reason}. "
            "Fetch the published file again."
        ) from error
    return WeightFile(path, hashlib.sha256(data).hexdigest(), layout, arrays, metadata)


def save_safetensors(
    path: str | os.PathLike,
    params: dict,
    config: dict[str, Any],
    kind: str,
    dtype: str = "float32",
) -> None:
    """Writes nested parameters, rounded to a type, and what rebuilds the network."""
    from flax import traverse_util  # which imports jax

    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.ascontiguousarray(array, dtype) for name, array in flat.items()}
    # One entry: safetensors shuffles its metadata, and the same weights should give
    # the same bytes, for datasets remember the hash.
    note = json.dumps({"config": config, "kind": kind}, sort_keys=True)
    data = safetensors_numpy.save(arrays, metadata={"svc_jax": note})
    write_bytes(pathlib.Path(path), data)


def read_safetensors(path: str | os.PathLike, kind: str) -> tuple[dict, dict[str, Any]]:
    """The nested parameters, float32, and the config `save_safetensors` wrote."""
    from flax import traverse_util  # which imports jax

    path = pathlib.Path(path)
    file = parse(path, read_bytes(path))
    if file.metadata["kind"] != kind:
        raise UserError(
            f"Weights {path} are of a {file.metadata['kind']}, not of a {kind}."
        )
    arrays = {k: v.astype(np.float32, copy=False) for k, v in file.arrays.items()}
    return traverse_util.unflatten_dict(arrays, sep="/"), file.metadata["config"]


def _bounded(path: pathlib.Path, data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise UserError(f"Weights {path} hold more than {MAX_BYTES >> 20} MiB.")
    return data


# safetensors' own reader for NumPy knows no bfloat16.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}


def _read_safetensors(path: pathlib.Path, data: bytes) -> _Contents:
    try:
        arrays = {
            name: np.frombuffer(found["data"], _DTYPES[found["dtype"]]).reshape(
                found["shape"]
            )
            for name, found in safetensors.deserialize(data)
        }
    except safetensors.SafetensorError as error:
        raise ValueError(error) from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    note = json.loads(header.get("__metadata__", {}).get("svc_jax", "null"))
    match note:
        case {"kind": str(), "config": dict()}:
            return arrays, note
    raise UserError(f"Weights {path} were not written by svc_jax: no kind, no config.")


def _read_h5(path: pathlib.Path, data: bytes) -> _Contents:
    import h5py

    def names(group, attribute):
        return [
            name.decode() if isinstance(name, bytes) else name
            for name in group.attrs[attribute]
        ]

    arrays, room = {}, MAX_BYTES
    with h5py.File(io.BytesIO(data), "r") as file:
        # The group is there where the model was saved with its weights.
        root: Any = file.get("model_weights", file)
        for layer in names(root, "layer_names"):
            for name in names(root[layer], "weight_names"):
                dataset = root[layer][name]
                room -= dataset.nbytes
                if room < 0:
                    raise ValueError(f"{name} has the shape {dataset.shape}")
                weight = name.rpartition("/")[2].partition(":")[0]
                arrays[f"{layer}/{weight}"] = dataset[()]
    return arrays, {}


def _read_h5_bz2(path: pathlib.Path, data: bytes) -> _Contents:
    with bz2.open(io.BytesIO(data)) as file:
        return _read_h5(path, _bounded(path, file.read(MAX_BYTES + 1)))


def _read_torch(path: pathlib.Path, data: bytes) -> _Contents:
    """A state dict as torch >= 1.6 writes it: a pickle, and each storage a member."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # torch does not compress; so this also stops bombs and overlapping members.
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("its members hold more than the file")
        (pickle_name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        if archive.getinfo(pickle_name).file_size > MAX_PICKLE_BYTES:
            raise ValueError("too long a pickle for a state dict")
        folder = pickle_name.removesuffix(".pkl")
        member = functools.cache(lambda key: archive.read(f"{folder}/{key}"))
        arrays = _state_dict(path, archive.read(pickle_name), member)
    return arrays, {}


_STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
}
_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *_STORAGES}
_MARK = object()


def _state_dict(path: pathlib.Path, pickle: bytes, member) -> dict[str, np.ndarray]:
    """Follows the few pickle instructions that a dict of tensors needs.

    A name in the pickle stays a string: nothing is imported, and the only calls are
    the two in `_call`. Keys are strings, so that no nested tuple is ever hashed.
    """
    stack, memo = [], {}

    def since_mark():
        items = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def set_items(items):
        target = stack[-1]
        if type(target) is not dict or not all(type(k) is str for k in items[::2]):
            raise ValueError("its pickle sets items of something else than a dict")
        target.update(zip(items[::2], items[1::2], strict=True))

    for opcode, argument, _ in pickletools.genops(pickle):
        match opcode.name:
            case "PROTO":
                pass
            case "GLOBAL" if argument not in _NAMES:
                raise _refusal(path, "name", str(argument))
            case "GLOBAL" | "BINUNICODE" | "BININT" | "BININT1" | "BININT2":
                stack.append(argument)
            case "NEWFALSE" | "NEWTRUE":
                stack.append(opcode.name == "NEWTRUE")
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                set_items([key, value])
            case "SETITEMS":
                set_items(since_mark())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPERSID":
                stack.append(_storage(stack.pop(), member))
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_call(name, arguments))
            case "BUILD":
                stack.pop()  # the versions of torch's modules
            case "STOP":
                break
            case refused:
                raise _refusal(path, "instruction", refused)

    (result,) = stack
    if not all(isinstance(array, np.ndarray) for array in result.values()):
        raise ValueError("it is not a dict of tensors")
    return result


def _refusal(path: pathlib.Path, what: str, name: str) -> UserError:
    return UserError(
        f"Weights {path} hold the pickle {what} {name[:80]!r}, which was not run: "
        "a state dict needs nothing of the kind. Use the published file."
    )


@dataclasses.dataclass(frozen=True)
class _Storage:
    """One member as a flat array; a type of its own, so that no view passes for one."""

    array: np.ndarray


def _storage(reference, member) -> _Storage:
    match reference:
        case ("storage", str(name), str(key), str(), int()):
            return _Storage(np.frombuffer(member(key), _STORAGES[name]))
    raise ValueError("its pickle refers to something else than a storage")


def _call(name, arguments):
    match name, arguments:
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_tensor_v2", (
            _Storage(array),
            int(offset),
            tuple(size),
            tuple(stride),
            *_,
        ):
            return _tensor(array, offset, size, stride)
    raise ValueError("its pickle makes a call of another form than torch's")


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    """A view of a storage, which must contain it (offset, size, stride in elements)."""
    # Only Python's integers: NumPy's wrap around, and the bounds below would not hold.
    if not all(type(n) is int and n >= 0 for n in (offset, *stride, *size)):
        raise ValueError("a tensor is placed by something else than whole numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # The second bound keeps a zero stride from making much out of little.
    if last >= len(storage) or math.prod(size) > len(storage):
        raise ValueError(f"a tensor of size {size} is larger than its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, strides, writeable=False
    )


_READERS = {
    ".h5": ("keras", _read_h5),
    ".h5.bz2": ("keras", _read_h5_bz2),
    ".pth": ("torch", _read_torch),
    ".safetensors": ("svc_jax", _read_safetensors),
}
