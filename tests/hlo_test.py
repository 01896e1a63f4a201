"""What is read from the text of compiled programs."""

import pytest

from svc_jax import hlo

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
  %kernel.1 = f32[256]{0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/pallas_call" stack_frame_id=1}, backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"4000","transcendentals":"200","bytes_accessed":"790"}}}
  ROOT %all-reduce.1 = (f32[256,2]{1,0}, bf16[8]{0}) all-reduce(%x, %y), channel_id=2, to_apply=%add
}
"""

# A cycle takes 50 operations, of products of 128 channels; 10 bytes; or 4 curves.
CHIP = hlo.Chip(1, 0.1, 1, 10, 2, filled=0.5, curves=4)


@pytest.mark.parametrize(
    "flops, num_bytes, curves, cycles",
    [(4000, 790, 200, 80), (4000, 810, 200, 81), (4000, 790, 328, 82)],
)
def test_a_kernel_takes_what_its_slowest_part_does(flops, num_bytes, curves, cycles):
    seconds = CHIP.kernel_seconds(flops, num_bytes, curves)
    assert seconds == pytest.approx(cycles * 1e-9)


def test_a_sum_over_chips_goes_round_twice():
    # A quarter of 8000 bytes crosses each link six times, at two bytes a nanosecond.
    assert CHIP.crossing_seconds(8000, 4) == pytest.approx(6 * (1000e-9 + 1e-6))
    assert CHIP.crossing_seconds(8000, 1) == 0


def test_what_a_loop_repeats_is_counted_as_often():
    found = hlo.operations(PROGRAM, CHIP)
    assert sum(one.cycles for one in found) == 7 * 100 + 30 + 5 + 80


def test_costs_are_summed_over_the_lines_of_svc_jax():
    rows = hlo.costliest(hlo.operations(PROGRAM, CHIP))
    assert rows == [("steps.py:12", 785, "jit(f)/tanh"), ("%copy.1", 30, "%copy.1")]


def test_what_crosses_between_chips_is_counted_with_its_bytes():
    assert hlo.collectives(PROGRAM) == {"all-reduce": (1, 256 * 2 * 4 + 8 * 2)}
