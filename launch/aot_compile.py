"""What a TPU pod would make of the training step, asked of its compiler on any machine.

  pip install -e ".[train,data,tpu]"
  python launch/aot_compile.py --config=configs/multi.py --topology=v5e:4x4

Compiles the true step of every phase for the topology, without a TPU, and prints what
XLA estimates: time of a step, use of the arithmetic units, memory of a chip, what
crosses between chips, and the operations that cost most with the lines they come from.
The frozen networks are CREPE tiny and the published Wav2Letter.
"""

import collections
import dataclasses
import functools
import itertools
import json
import os
import re
import time

from svc_jax import command_line

# Of one chip: (clock in GHz, dense bfloat16 TFLOP/s, memory in GB). Peak and memory are
# Google's figures; the clock is the peak over what the matrix units do in a cycle.
CHIPS = {
    "v4": (1.05, 275, 32),
    "v5e": (1.5, 197, 16),
    "v5p": (1.75, 459, 95),
    "v6e": (1.75, 918, 32),
}
COLLECTIVES = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\("
)
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8}
COSTLIEST = 10


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of a compiled program.

    Attributes:
      cycles: that XLA estimates for all the times it runs.
      name: where in the program it is from, as JAX names it.
      line: FILE:LINE, or "".
    """

    cycles: int
    name: str
    line: str


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Instructions of each computation of a compiled program, and the entry's name."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(line.strip())
    return found, entry


def instructions(text: str):
    """Yields (how often it runs, instruction), those of loops and calls included.

    A loop runs as often as the largest number that its condition compares with.
    """
    found, entry = computations(text)

    def called(role, line):
        match = re.search(rf"\b{role}=%?([\w.\-]+)", line)
        return match[1] if match else None

    def walk(name, times):
        for line in found.get(name, ()):
            yield times, line
            if " while(" in line:
                condition = "".join(found[called("condition", line)])
                trips = max(map(int, re.findall(r"constant\((\d+)\)", condition)))
                yield from walk(called("body", line), times * trips)
            elif " call(" in line:
                yield from walk(called("to_apply", line), times)

    yield from walk(entry, 1)


def places(text: str) -> dict[str, str]:
    """FILE:LINE of each stack frame, of the innermost call that stands in svc_jax."""
    tables = {}
    for title in ("FileNames", "FileLocations", "StackFrames"):
        part = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = part[1].splitlines() if part else []
        tables[title] = dict(row.split(" ", 1) for row in rows)

    def number(name, row):
        return re.search(rf"\b{name}=(\d+)", row)[1]

    def place(frame):
        location = tables["FileLocations"][number("file_location_id", frame)]
        file = tables["FileNames"][number("file_name_id", location)].strip('"')
        return file, number("line", location)

    found = {}
    for name, frame in tables["StackFrames"].items():
        file, line = place(frame)
        seen = {name}
        while f"{os.sep}svc_jax{os.sep}" not in file:
            parent = number("parent_frame_id", frame)
            if parent in seen or parent not in tables["StackFrames"]:
                break
            seen.add(parent)
            frame = tables["StackFrames"][parent]
            file, line = place(frame)
        found[name] = f"{os.path.basename(file)}:{line}"
    return found


def operations(text: str) -> list[Operation]:
    """All that XLA estimates cycles for."""
    found, lines_of = [], places(text)
    for times, line in instructions(text):
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            name = re.search(r'op_name="([^"]*)"', line)
            frame = re.search(r"stack_frame_id=(\d+)", line)
            place = lines_of.get(frame[1], "") if frame else ""
            label = name[1] if name else line.partition(" = ")[0]
            found.append(Operation(times * int(cycles[1]), label, place))
    return found


def costliest(found: list[Operation]) -> list[tuple[str, int, str]]:
    """(line, cycles of all operations from it, the name of the costliest of them)."""
    by_line = collections.defaultdict(list)
    for operation in found:
        by_line[operation.line or operation.name].append(operation)
    rows = [
        (
            line,
            sum(one.cycles for one in those),
            max(those, key=lambda one: one.cycles).name,
        )
        for line, those in by_line.items()
    ]
    return sorted(rows, key=lambda row: -row[1])[:COSTLIEST]


def num_bytes(shape: str) -> int:
    """Bytes of an HLO shape, of a tuple all its parts."""
    total = 0
    for dtype, axes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for axis in filter(None, axes.split(",")):
            count *= int(axis)
        total += count * ITEM_BYTES.get(dtype, 4)
    return total


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """What crosses between chips: kind -> (how many, bytes of their results)."""
    found = collections.defaultdict(lambda: (0, 0))
    for times, line in instructions(text):
        if match := COLLECTIVES.search(line):
            count, size = found[match[2]]
            found[match[2]] = count + times, size + times * num_bytes(match[1])
    return dict(found)


def compiled_step(config, phase, mesh, num_singers: int):
    """The training step of a phase, compiled for the devices of a mesh.

    Returns:
      (compiled program, model's multiply-adds in a step).
    """
    import jax
    import numpy as np

    from svc_jax import builders, describe, sharding, steps
    from svc_jax.features import FrozenParams
    from svc_jax.models.wav2letter import Wav2Letter
    from svc_jax.types import Batch

    published = dataclasses.asdict(Wav2Letter())
    fields = ("channels", "wide_channels", "num_labels", "kernels", "wide_kernel")
    extractor = builders.extractor(
        builders.geometry(config), {k: published[k] for k in fields}, "wide", "tiny"
    )
    networks = builders.networks(config, num_singers, extractor)
    optimizers = builders.run_optimizers(config)
    objective = builders.objective(config)

    def array(sharding, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    init = functools.partial(steps.init_state, networks, optimizers)
    state = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.state_shardings(state, mesh)
    state = jax.tree.map(array, shardings, state)
    size, samples = config.batch_size, extractor.geometry.segment_samples
    crepe = jax.eval_shape(
        extractor.crepe.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1024), "f4")
    )
    wav2letter = jax.eval_shape(
        extractor.wav2letter.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 100, 39), "f4"),
    )
    frozen = FrozenParams(crepe["params"], wav2letter["params"])
    audio = jax.ShapeDtypeStruct((size, samples), np.float32)
    extracted = jax.eval_shape(extractor.extract, frozen, audio)
    batch = Batch(
        audio,
        *dataclasses.astuple(extracted.features),
        extracted.asr_stats,
        jax.ShapeDtypeStruct((size,), np.int32),
    )
    scales = {"pitch": jax.ShapeDtypeStruct((), "f4")}
    arguments = (
        state,
        jax.tree.map(functools.partial(array, split), batch),
        jax.tree.map(functools.partial(array, whole), frozen),
        jax.tree.map(
            functools.partial(array, whole), scales | {"content": scales["pitch"]}
        ),
        array(whole, jax.eval_shape(lambda: jax.random.key(0))),
    )
    step = functools.partial(
        steps.train_step,
        networks,
        optimizers,
        objective,
        phase,
        accumulate=config.accumulate,
    )
    traced = jax.jit(step, out_shardings=(shardings, whole), donate_argnums=0).trace(
        *arguments
    )
    count = sum(describe.multiply_adds(traced.jaxpr).values())
    return traced.lower().compile(), count


def report(config, phase, mesh, chip: str, num_singers: int) -> dict:
    """All that is said of a phase."""
    ghz, peak, memory = CHIPS[chip]
    started = time.perf_counter()
    program, count = compiled_step(config, phase, mesh, num_singers)
    compile_seconds = time.perf_counter() - started
    text = program.as_text()
    found = operations(text)
    cycles = sum(operation.cycles for operation in found)
    seconds = cycles / ghz / 1e9
    usage = program.memory_analysis()
    bytes_used = (
        usage.argument_size_in_bytes
        + usage.output_size_in_bytes
        - usage.alias_size_in_bytes
        + usage.temp_size_in_bytes
        + usage.generated_code_size_in_bytes
    )
    costs = program.cost_analysis()
    geometry = config.geometry
    audio = config.batch_size * geometry.segment_samples / geometry.sample_rate
    return {
        "phase": "+".join(phase.passes),
        "compile_seconds": compile_seconds,
        "memory_gb": bytes_used / 1e9,
        "fits": bytes_used / 1e9 < memory,
        "tflop_per_chip": 2 * count / mesh.size / 1e12,
        "xla_tflop_per_chip": costs.get("flops", 0.0) / 1e12,
        "gigabytes_moved": costs.get("bytes accessed", 0.0) / 1e9,
        "step_seconds": seconds,
        "utilisation": 2 * count / mesh.size / 1e12 / peak / seconds,
        "audio_seconds_per_second": audio / seconds,
        "collectives": collectives(text),
        "costliest": [
            {"line": line, "share": count / cycles, "name": name}
            for line, count, name in costliest(found)
        ],
    }


def lines(found: dict) -> list[str]:
    """A report for people."""
    crossing = ", ".join(
        f"{count} {kind} of {size / 1e6:.1f} MB"
        for kind, (count, size) in found["collectives"].items()
    )
    return [
        f"{found['phase']} (compiled in {found['compile_seconds']:.0f} s)",
        (
            f"  a step: {found['step_seconds'] * 1e3:.1f} ms by XLA's estimate,"
            f" {found['utilisation']:.1%} of the peak,"
            f" {found['audio_seconds_per_second']:.0f} s of audio a second"
        ),
        (
            f"  a chip: {found['memory_gb']:.2f} GB"
            f" ({'fits' if found['fits'] else 'DOES NOT FIT'}),"
            f" {found['tflop_per_chip']:.2f} TFLOP of the networks,"
            f" {found['gigabytes_moved']:.1f} GB moved"
        ),
        f"  between chips: {crossing or 'nothing'}",
        *(
            f"  {one['share']:6.1%}  {one['line']:24s} {one['name'][-90:]}"
            for one in found["costliest"]
        ),
    ]


def total_hours(config, found: list[dict]) -> float:
    """Of a whole run, whose phases begin where the config says."""
    phases = config.phases
    starts = [0.0, phases.adversarial, phases.mixup, 1.0]
    shares = [max(0.0, end - start) for start, end in itertools.pairwise(starts)]
    per_step = sum(
        share * one["step_seconds"] for share, one in zip(shares, found, strict=True)
    )
    return config.num_steps * per_step / 3600


def main(_, flags):
    import jax
    from jax.experimental import topologies

    from svc_jax import sharding, steps
    from svc_jax.errors import UserError

    chip = flags.topology.partition(":")[0]
    if chip not in CHIPS:
        raise UserError(
            f"--topology={flags.topology}: chips are {', '.join(CHIPS)}; name one as in"
            " v5e:4x4."
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=flags.topology
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--topology={flags.topology}: {command_line.one_line(error)}; is libtpu"
            ' installed (pip install -e ".[train,data,tpu]"), and is there such a slice?'
        ) from error
    config = flags.config
    mesh = sharding.mesh_of(topology.devices, config.num_model)
    config.unlock()
    config.batch_size = flags.batch_per_chip * mesh.shape["data"]
    phases = (
        steps.Phase(),
        steps.Phase(adversarial=True, unaligned=True),
        steps.Phase(adversarial=True, unaligned=True, mixup=True),
    )
    found = []
    print(f"{flags.topology}: {mesh.size} chips, batch {config.batch_size}", flush=True)
    for phase in phases:
        found.append(report(config, phase, mesh, chip, flags.num_singers))
        print("\n".join(lines(found[-1])), flush=True)
    hours = total_hours(config, found)
    print(f"{config.num_steps} steps: {hours:.1f} hours by XLA's estimate")
    if flags.json:
        told = {"topology": flags.topology, "jax": jax.__version__, "hours": hours}
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump({**told, "phases": found}, file, indent=2)


def define_flags():
    """Flags of the command line."""
    from absl import flags

    command_line.define_config()
    flags.DEFINE_string("topology", "v5e:4x4", "Of the slice, CHIP:AxB or CHIP:AxBxC.")
    flags.DEFINE_integer("batch_per_chip", 16, "Segments that a chip trains on.")
    flags.DEFINE_integer("num_singers", 18, "Singers of the dataset.")
    flags.DEFINE_string("json", None, "File for all that is printed, as JSON.")


if __name__ == "__main__":
    command_line.run(main, define_flags, __doc__)
