"""A trained model as a whole: from a workdir, or a folder made by export."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from typing import Any

import flax.linen as nn
from flax import traverse_util

from svc_jax import weight_files
from svc_jax.errors import UserError
from svc_jax.features import FeatureExtractor, FrozenParams

PARAMS = "params.safetensors"


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


def load(path) -> Model:
    """Loads a workdir's newest checkpoint, or an exported folder.

    Raises:
      UserError: if there is no model, or it is damaged.
    """
    from data_pipeline import schema
    from svc_jax import builders, checkpoints, weights

    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; --model is a workdir or an export.")
    config = checkpoints.load_config(path)
    card = schema.Card.read(path)
    wav2letter = weights.wav2letter(path / schema.FROZEN / "wav2letter.safetensors")
    crepe, capacity = None, None
    if card.f0["network"] != "yin":
        capacity = card.f0["network"].removeprefix("crepe-")
        crepe = weights.crepe(capacity, path / schema.FROZEN / "crepe.safetensors")
    extractor = builders.extractor(
        builders.geometry(config),
        wav2letter.config,
        card.asr["layer"],
        capacity,
        card.f0["hop_length"],
    )
    generator = builders.generator(config, len(card.singers))
    exported = path / PARAMS
    if exported.exists():
        params, _ = weight_files.read_safetensors(exported, "generator")
        _check_params(exported, params, generator, extractor)
    else:
        params = _newest_params(path, generator, extractor)
    frozen = FrozenParams(crepe and crepe.params, wav2letter.params)
    return Model(generator, params, extractor, frozen, card, config)


def _check_params(path, params, generator, extractor):
    """Raises UserError unless parameters are those of the generator, and finite."""
    import jax
    import numpy as np

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
    import jax

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
    import jax

    from svc_jax import steps

    init = functools.partial(steps.init_generator, model.generator, model.extractor)
    return dataclasses.replace(model, params=jax.jit(init)(jax.random.key(0)))


def save(model: Model, source, output):
    """Writes an export: config, parameters, singers and frozen networks.

    Args:
      model: from `load`.
      source: the folder it was loaded from.
      output: made; must not exist.

    Raises:
      UserError: if the output exists.
    """
    from data_pipeline import schema

    output = pathlib.Path(output)
    if output.exists():
        raise UserError(f"{output}: exists; remove it or name another --output.")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copytree(pathlib.Path(source) / schema.FROZEN, partial / schema.FROZEN)
    model.card.write(partial)
    config = json.dumps(model.config.to_dict(), indent=2)
    (partial / "config.json").write_text(config + "\n")
    weight_files.save_safetensors(partial / PARAMS, model.params, {}, "generator")
    os.replace(partial, output)
