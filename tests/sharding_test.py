"""The mesh, the rules of its parameters, and which host feeds what."""

import functools
import math

import jax
import numpy as np
import pytest

from configs import fast, multi
from svc_jax import builders, sharding, steps
from svc_jax.errors import UserError

WAV2LETTER = {"channels": 8, "wide_channels": 12}


def abstract_state(config):
    extractor = builders.extractor(builders.geometry(config), WAV2LETTER, "wide", None)
    networks = builders.networks(config, 3, extractor)
    optimizers = builders.run_optimizers(config)
    init = functools.partial(steps.init_state, networks, optimizers)
    return jax.eval_shape(init, jax.random.key(0))


@pytest.mark.parametrize("configs", [multi, fast])
def test_a_group_of_model_shares_the_state(configs):
    state = abstract_state(configs.get_config())
    shardings = sharding.state_shardings(state, sharding.make_mesh(4))
    leaves = jax.tree.leaves(state)
    own = [
        s.shard_shape(x.shape)
        for x, s in zip(leaves, jax.tree.leaves(shardings), strict=True)
    ]
    whole = sum(leaf.size for leaf in leaves)
    assert whole / 4 <= sum(map(math.prod, own)) < 1.02 * whole / 4
    # The optimiser's means lie where their parameters do.
    params, means = shardings.generator.params, shardings.generator.opt_state[1].mu
    assert jax.tree.leaves(params) == jax.tree.leaves(means)


def test_one_device_of_model_holds_the_whole_state():
    state = abstract_state(multi.get_config())
    shardings = sharding.state_shardings(state, sharding.make_mesh(1))
    assert all(s.is_fully_replicated for s in jax.tree.leaves(shardings))


def test_channels_that_cannot_be_split_are_named():
    leaf = jax.ShapeDtypeStruct((3, 6), "float32")
    state = {"generator": {"dense": {"kernel": leaf}}}
    line = "generator/dense/kernel: 6 channels cannot be split over config.num_model 4"
    with pytest.raises(UserError, match=line):
        sharding.state_shardings(state, sharding.make_mesh(4))


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="no rule in sharding.RULES names strange/x"):
        sharding.state_shardings({"strange": {"x": np.zeros(1)}}, sharding.make_mesh())


def test_devices_that_cannot_be_divided_are_refused():
    with pytest.raises(UserError, match=r"8 devices, .* config\.num_model 3; choose"):
        sharding.make_mesh(3)


@pytest.mark.parametrize("num_model", [1, 2, 8])
def test_one_host_feeds_whole_batches(num_model):
    assert sharding.host_shard(sharding.make_mesh(num_model)) == (0, 1)


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *places, **_: calls.append(places)
    )
    for name in sharding.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_process_is_alone_unless_told(joined):
    sharding.join_hosts()
    assert joined == []


def test_processes_join_the_coordinator_that_is_named(joined):
    sharding.join_hosts("here:1", 2, 1)
    assert joined == [("here:1", 2, 1)]


@pytest.mark.parametrize("launcher", sharding.LAUNCHERS)
def test_jax_finds_the_others_of_a_launcher(joined, monkeypatch, launcher):
    monkeypatch.setenv(launcher, "0")
    sharding.join_hosts()
    assert joined == [()]
    sharding.join_hosts(num_processes=1)
    assert joined == [()]


def test_a_coordinator_alone_is_not_enough(joined):
    with pytest.raises(UserError, match="needs --num_processes and --process_id"):
        sharding.join_hosts("here:1")
    assert joined == []


def test_others_that_are_not_found_end_in_one_line(monkeypatch):
    def fail(**_):
        raise ValueError("coordinator_address\nshould be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"not found \(coordinator_address should be"):
        sharding.join_hosts("auto")


def test_what_is_done_once_may_refuse():
    def refuse(thing):
        raise UserError(f"{thing}: über; choose another.")

    with pytest.raises(UserError, match="x: über; choose another."):
        sharding.once(refuse, "x")
