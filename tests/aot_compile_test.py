"""What launch/aot_compile.py reads from compiled programs."""

import importlib.util
import math
import pathlib
import sys

import jax
import pytest

from svc_jax import sharding, steps

PATH = pathlib.Path(__file__).resolve().parents[1] / "launch" / "aot_compile.py"

# As XLA prints them, shortened: a loop of seven turns and a sum over the chips.
PROGRAM = """\
HloModule jit_f, is_scheduled=true

FileNames
1 "/there/svc_jax/steps.py"
2 "/elsewhere/jax/numpy.py"

FunctionNames
1 "train_step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=2 end_column=2}
2 {file_name_id=2 function_name_id=1 line=345 end_line=345 column=2 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}


%body (p: (s32[], f32[256])) -> (s32[], f32[256]) {
  %fusion.1 = f32[256]{0} fusion(%p), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/tanh" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %tuple.1 = (s32[], f32[256]{0}) tuple(%p, %fusion.1)
}

%condition (p: (s32[], f32[256])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%p, %constant.1), direction=LT
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %while.1 = (s32[], f32[256]{0}) while(%tuple), condition=%condition, body=%body
  %copy.1 = f32[256]{0} copy(%x), backend_config={"window_config":{"estimated_cycles":"30"}}
  %fusion.2 = f32[256]{0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mul" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"5"}}
  ROOT %all-reduce.1 = (f32[256,2]{1,0}, bf16[8]{0}) all-reduce(%x, %y), channel_id=2, to_apply=%add
}
"""


@pytest.fixture(scope="module")
def aot_compile():
    spec = importlib.util.spec_from_file_location("aot_compile", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["aot_compile"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_what_a_loop_repeats_is_counted_as_often(aot_compile):
    found = aot_compile.operations(PROGRAM)
    assert sum(one.cycles for one in found) == 7 * 100 + 30 + 5


def test_costs_are_summed_over_the_lines_of_svc_jax(aot_compile):
    rows = aot_compile.costliest(aot_compile.operations(PROGRAM))
    assert rows == [("steps.py:12", 705, "jit(f)/tanh"), ("%copy.1", 30, "%copy.1")]


def test_what_crosses_between_chips_is_counted_with_its_bytes(aot_compile):
    assert aot_compile.collectives(PROGRAM) == {"all-reduce": (1, 256 * 2 * 4 + 8 * 2)}


def test_the_hours_of_a_run_are_those_of_its_phases(aot_compile):
    from configs import multi

    config = multi.get_config()
    config.num_steps = 3600
    config.phases.adversarial, config.phases.mixup = 0.25, 0.5
    found = [{"step_seconds": seconds} for seconds in (4.0, 8.0, 10.0)]
    assert aot_compile.total_hours(config, found) == pytest.approx(1 + 2 + 5)


@pytest.mark.proof
def test_gradients_and_metrics_alone_cross_between_chips(
    aot_compile, tiny_config, monkeypatch
):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    config = tiny_config(batch_size=4)
    mesh = sharding.mesh_of(topology.devices, 1)
    phase = steps.Phase(adversarial=True)
    program, _ = aot_compile.compiled_step(config, phase, mesh, 2)
    found = aot_compile.collectives(program.as_text())
    assert set(found) == {"all-reduce"}
    (state, *_), _ = program.args_info
    trained = jax.tree.leaves((state.generator.params, state.discriminator.params))
    gradients = sum(4 * math.prod(leaf.shape) for leaf in trained)
    _, size = found["all-reduce"]
    assert gradients <= size <= gradients + 1e4
