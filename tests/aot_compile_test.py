"""launch/aot_compile.py: the training step as a TPU's compiler sees it."""

import importlib.util
import math
import pathlib
import sys

import jax
import pytest

from svc_jax import hlo, sharding, steps

PATH = pathlib.Path(__file__).resolve().parents[1] / "launch" / "aot_compile.py"


@pytest.fixture(scope="module")
def aot_compile():
    spec = importlib.util.spec_from_file_location("aot_compile", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["aot_compile"] = module
    spec.loader.exec_module(module)
    return module


def test_the_hours_of_a_run_are_those_of_its_phases(aot_compile):
    from configs import multi

    config = multi.get_config()
    config.num_steps = 3600
    config.phases.adversarial, config.phases.mixup = 0.25, 0.5
    found = [{"step_seconds": seconds} for seconds in (4.0, 8.0, 10.0)]
    assert aot_compile.total_hours(config, found) == pytest.approx(1 + 2 + 5)


# What `convolution=fused` needs; most gradients are then of two bytes.
PAPER_WIDTHS = {
    "precision": "bfloat16",
    "convolution": "fused",
    **{f"generator.{name}channels": 64 for name in ("", "skip_", "context_")},
    **{f"generator.{name}gate_channels": 128 for name in ("", "context_")},
    "discriminator.channels": 64,
}


@pytest.mark.proof
@pytest.mark.parametrize(
    "changes, item_bytes", [({}, 4), (PAPER_WIDTHS, 2)], ids=["plain", "fused"]
)
def test_gradients_and_metrics_alone_cross_between_chips(
    aot_compile, tiny_config, changes, item_bytes
):
    pytest.importorskip("libtpu")
    config = tiny_config(batch_size=4, **changes)
    mesh = sharding.mesh_of(sharding.devices_of_slice("v5e:2x2"), 1)
    traced = aot_compile.traced_step(config, steps.PHASES[-1], mesh, 2)
    program = traced.lower().compile()
    found = hlo.collectives(program.as_text())
    assert set(found) == {"all-reduce"}
    (state, *_), _ = program.args_info
    trained = state.generator.params, state.discriminator.params
    sizes = {
        jax.tree_util.keystr(path): math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trained)
    }
    gradients = sum(sizes.values())
    # A kernel's gradient is enough for that of its scale; the last residual is not heard.
    unneeded = sum(
        size
        for name, size in sizes.items()
        if "scale" in name or "['wavenet']['layers']['layer2']['residual']" in name
    )
    _, size = found["all-reduce"]
    assert item_bytes * (gradients - unneeded) <= size <= 4 * gradients + 1e4
