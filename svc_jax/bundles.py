"""A trained model as a whole: from a workdir, or a folder made by export.

An export's config.json is that of the run and, under `export`, the version of the
format, the type of the parameters and the sha256 of every file, which loading checks.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from svc_jax import weight_files
from svc_jax.errors import UserError
from svc_jax.features import FeatureExtractor, FrozenParams

PARAMS = "params.safetensors"
VERSION = "1.0.0"  # of the format
README = "README.md"  # the model card, which may be edited: it has no hash
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Model:
    """All that converting needs.

    Attributes:
      generator: the module.
      params: its weights, the running mean of training.
      extractor: frozen networks, with their grids.
      frozen: their weights.
      card: data_pipeline.schema.Card, singers and grids.
      config: of the run.
    """

    generator: nn.Module
    params: Any
    extractor: FeatureExtractor
    frozen: FrozenParams
    card: Any
    config: Any

    def convert(
        self,
        audio,
        sample_rate: int,
        singer: str | Mapping[str, float],
        *,
        transpose: str = "mean",
        seed: int = 0,
    ) -> np.ndarray:
        """Re-sings audio in another voice; files are for svc_jax.convert.

        Args:
          audio: [N] or [N, channels] in [-1, 1].
          sample_rate: of it, in Hz.
          singer: a name, or a virtual singer: names with weights of sum 1.
          transpose: see synthesis.transposition.
          seed: of the generator's noise.

        Returns:
          float32 [N] at the same rate; louder than 1 where the voice is.

        Raises:
          UserError: for audio without samples or with NaN, or an unknown singer.
        """
        from svc_jax import audio_files, synthesis

        audio = np.asarray(audio, np.float32)
        if not audio.size or not np.isfinite(audio).all():
            raise UserError(f"audio of shape {audio.shape} holds nothing, or NaN.")
        own_rate = self.extractor.geometry.sample_rate
        mono, _ = audio_files.to_mono(
            audio.reshape(len(audio), -1), sample_rate, own_rate
        )
        mix = {singer: 1.0} if isinstance(singer, str) else dict(singer)
        sung, _ = synthesis.convert(self, mono, mix, transpose=transpose, seed=seed)
        if own_rate != sample_rate:
            sung = audio_files.resample(sung, own_rate, sample_rate)
        return np.resize(np.pad(sung, (0, 1)), len(audio))


def load(path) -> Model:
    """Loads a workdir's newest checkpoint, or an exported folder.

    Raises:
      UserError: if there is no model, or it is damaged.
    """
    from data_pipeline import schema
    from svc_jax import builders, checkpoints

    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; --model is a workdir or an export.")
    config = checkpoints.load_config(path)
    sealed = config.get("export")
    if sealed is not None:
        del config["export"]
        _check_seal(path, sealed)
    card = schema.Card.read(path)
    crepe, wav2letter = _frozen(path, card)
    extractor = builders.extractor(
        builders.geometry(config),
        wav2letter.config,
        card.asr["layer"],
        crepe and crepe.config["capacity"],
        card.f0["hop_length"],
    )
    generator = builders.generator(config, len(card.singers))
    if sealed is not None:
        params, _ = weight_files.read_safetensors(path / PARAMS, "generator")
        _check_params(path / PARAMS, params, generator, extractor)
    else:
        params = _newest_params(path, generator, extractor)
    frozen = FrozenParams(crepe and crepe.params, wav2letter.params)
    return Model(generator, params, extractor, frozen, card, config)


def _check_seal(folder: pathlib.Path, sealed):
    """Raises UserError unless an export is whole, unaltered and not newer than us."""
    try:
        version, files = sealed.version, sealed.sha256.to_dict()
        is_newer = int(version.split(".")[0]) > int(VERSION.split(".")[0])
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'}: damaged ({error}); export the model again."
        ) from error
    if is_newer:
        raise UserError(
            f"{folder}: version {version} is newer than {VERSION}; update svc_jax."
        )
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file():
            if name in sealed.apart:
                continue
            raise UserError(
                f"{path}: is missing; get the whole model, or export it again."
            )
        found = _sha256(path)
        if found != sha256:
            raise UserError(
                f"{path}: is not the file that was exported (sha256 {found[:8]}...,"
                f" not {sha256[:8]}...); get the model again."
            )


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(weight_files.read_bytes(path)).hexdigest()


def frozen_networks(card) -> dict[str, tuple[str, str]]:
    """The frozen networks of a dataset's or model's card.

    Returns:
      dict of their kind, as their files are named, -> (name in published.PUBLISHED,
      sha256 of the file they are from).
    """
    networks = {"wav2letter": ("wav2letter", card.asr["sha256"])}
    if card.f0["network"] != "yin":
        networks["crepe"] = (card.f0["network"], card.f0["sha256"])
    return networks


def is_published(network: str, sha256: str) -> bool:
    """Whether a frozen network can be had from where `weights` looks."""
    from svc_jax import published

    return sha256 in {file.sha256 for file in published.PUBLISHED.get(network, ())}


def _frozen(folder: pathlib.Path, card):
    """Weights of CREPE, or None, and of Wav2Letter: the model's own, or published."""
    from data_pipeline import schema
    from svc_jax import weights

    found = {"crepe": None}
    for kind, (network, sha256) in frozen_networks(card).items():
        path = folder / schema.FROZEN / f"{kind}.safetensors"
        # An export without frozen networks may do with the published ones.
        if not path.exists() and is_published(network, sha256):
            path = None
        if kind == "crepe":
            found[kind] = weights.crepe(network.removeprefix("crepe-"), path)
        else:
            found[kind] = weights.wav2letter(path)
    return found["crepe"], found["wav2letter"]


def _check_params(path, params, generator, extractor):
    """Raises UserError unless parameters are those of the generator, and finite."""
    from svc_jax import steps

    init = functools.partial(steps.init_generator, generator, extractor)
    expected = traverse_util.flatten_dict(
        jax.eval_shape(init, jax.random.key(0)), sep="/"
    )
    found = traverse_util.flatten_dict(params, sep="/")
    for name in sorted(expected.keys() | found.keys()):
        wanted, given = (
            tree[name].shape if name in tree else "nothing"
            for tree in (expected, found)
        )
        if wanted != given:
            raise UserError(
                f"{path}: {name} is {given}, but {wanted} by config.json and"
                " singers.json; export the model again."
            )
        if not np.isfinite(found[name]).all():
            raise UserError(f"{path}: {name} holds NaN; train and export again.")


def _newest_params(workdir, generator, extractor):
    """The running mean of G's parameters in the newest intact checkpoint."""
    from svc_jax import checkpoints, steps

    step = checkpoints.newest(workdir)
    if step is None:
        raise UserError(
            f"{workdir}: holds neither {PARAMS} nor a checkpoint; train, or export"
            " again."
        )
    init = functools.partial(steps.init_generator, generator, extractor)
    wanted = {"ema_params": jax.eval_shape(init, jax.random.key(0))}
    return checkpoints.restore(workdir, step, wanted)["ema_params"]


def untrained(model: Model) -> Model:
    """The same model before any training: fresh parameters."""
    from svc_jax import steps

    init = functools.partial(steps.init_generator, model.generator, model.extractor)
    return dataclasses.replace(model, params=jax.jit(init)(jax.random.key(0)))


def check_free(output):
    """Raises UserError unless a folder of that name can be made."""
    output = pathlib.Path(output)
    if output.exists():
        raise UserError(f"{output}: exists; remove it or name another --output.")
    place = next(p for p in output.absolute().parents if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{output}: cannot be written ({place} is no folder, or not yours); name"
            " another --output."
        )


def save(
    model: Model,
    source,
    output,
    *,
    dtype: str = "float32",
    with_frozen: bool = True,
    files: Mapping[str, bytes] = {},
):
    """Writes an export, then sees that it sings as the model does.

    Args:
      model: from `load`.
      source: the folder it was loaded from.
      output: made; must not exist.
      dtype: of the parameters in the file, one of DTYPES.
      with_frozen: take the frozen networks along; else they are named by their hashes.
      files: more of them, by their names.

    Raises:
      UserError: if the output exists or cannot be written, or sings differently.
    """
    from data_pipeline import schema
    from svc_jax import parity

    output = pathlib.Path(output)
    if output.exists():
        raise UserError(f"{output}: exists; remove it or name another --output.")
    partial = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(model, pathlib.Path(source), partial, dtype, with_frozen, files)
            written = parity.singing(load(partial))
            found = parity.distance(rounded(model, dtype), written)
            parity.check(f"{output}: {PARAMS}", found)
            if not with_frozen:
                shutil.rmtree(partial / schema.FROZEN)
            os.replace(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        said = error.strerror or error
        raise UserError(
            f"{output}: cannot be written ({said}); name another --output."
        ) from error


def _write(model, source, folder, dtype, with_frozen, files):
    """The files of an export, config.json with their hashes last."""
    from data_pipeline import schema

    model.card.write(folder)
    params = jax.device_get(model.params)
    weight_files.save_safetensors(folder / PARAMS, params, {}, "generator", dtype)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names = [schema.CARD, PARAMS, *files]
    sha256 = {name: _sha256(folder / name) for name in names if name != README}
    frozen = sorted((source / schema.FROZEN).glob("*.safetensors"))
    (folder / schema.FROZEN).mkdir()
    for path in frozen:
        name = f"{schema.FROZEN}/{path.name}"
        shutil.copyfile(path, folder / name)
        sha256[name] = _sha256(path)
    config = model.config.to_dict()
    config["data"] = {**config["data"], "dir": ""}  # of the machine it was trained on
    config["export"] = {
        "version": VERSION,
        "dtype": dtype,
        "sha256": sha256,
        # Files of `sha256` that the folder may lack.
        "apart": [] if with_frozen else [f"{schema.FROZEN}/{p.name}" for p in frozen],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def rounded(model: Model, dtype: str) -> Model:
    """The model with its parameters rounded to a type, in float32 again."""

    def round_(array):
        return np.asarray(array).astype(dtype).astype(np.float32)

    return dataclasses.replace(model, params=jax.tree.map(round_, model.params))
