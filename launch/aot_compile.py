"""What a TPU pod would make of the training step, asked of its compiler on any machine.

  pip install -e ".[train,data,tpu]"
  python launch/aot_compile.py --config=configs/multi.py --topology=v5e:4x4

Compiles the true step of every phase for the topology, without a TPU, and prints what
XLA estimates: time of a step, use of the arithmetic units, memory of a chip, what
crosses between chips, and the operations that cost most with the lines they come from.
The frozen networks are CREPE tiny and the published Wav2Letter.
"""

import dataclasses
import functools
import itertools
import time

from svc_jax import command_line, hlo


def traced_step(config, phase, mesh, num_singers: int):
    """The training step of a phase on the devices of a mesh, to be lowered."""
    import jax
    import numpy as np

    from svc_jax import builders, sharding, steps
    from svc_jax.types import Batch

    def on(place, tree):
        """Shapes of arrays that lie there."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
        )

    rng = jax.eval_shape(lambda: jax.random.key(0))
    extractor = builders.extractor(builders.geometry(config), {}, "wide", "tiny")
    device = mesh.devices.flat[0]
    networks = builders.networks(config, num_singers, extractor, device)
    optimizers = builders.run_optimizers(config)
    frozen = jax.eval_shape(extractor.init, rng)
    size, samples = config.batch_size, extractor.geometry.segment_samples
    audio = jax.ShapeDtypeStruct((size, samples), np.float32)
    extracted = jax.eval_shape(extractor.extract, frozen, audio)
    batch = Batch(
        audio,
        *dataclasses.astuple(extracted.features),
        extracted.asr_stats,
        jax.ShapeDtypeStruct((size,), np.int32),
    )
    scale = jax.ShapeDtypeStruct((), np.float32)
    init = functools.partial(steps.init_state, networks, optimizers)
    state = jax.eval_shape(init, rng)
    shardings = sharding.state_shardings(state, mesh)
    step = builders.train_step(config, networks, optimizers, phase)
    whole = sharding.replicated(mesh)
    return sharding.compiled_update(step, shardings, mesh).trace(
        jax.tree.map(on, shardings, state),
        on(sharding.batch_sharding(mesh), batch),
        *on(whole, (frozen, {"pitch": scale, "content": scale}, rng)),
    )


def report(config, phase, mesh, chip: hlo.Chip, num_singers: int) -> dict:
    """All that is said of a phase."""
    from svc_jax import describe

    started = time.perf_counter()
    traced = traced_step(config, phase, mesh, num_singers)
    program = traced.lower().compile()
    compile_seconds = time.perf_counter() - started
    # What is computed again, or is padding of a kernel, is no use of the chip.
    plain = config.copy_and_resolve_references()
    plain.remat, plain.convolution = "none", "direct"
    traced = traced_step(plain, phase, mesh, num_singers)
    count = sum(describe.multiply_adds(traced.jaxpr).values())
    text = program.as_text()
    found = hlo.operations(text, chip)
    cycles = sum(operation.cycles for operation in found)
    collectives = hlo.collectives(text)
    # XLA has no estimate for it; as if it waited for all the rest.
    crossing = sum(
        chip.crossing_seconds(size, mesh.size) for _, size in collectives.values()
    )
    seconds = cycles / chip.ghz / 1e9 + crossing
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
        "fits": bytes_used / 1e9 < chip.gigabytes,
        "tflop_per_chip": 2 * count / mesh.size / 1e12,
        "xla_tflop_per_chip": costs.get("flops", 0.0) / 1e12,
        "gigabytes_moved": costs.get("bytes accessed", 0.0) / 1e9,
        "step_seconds": seconds,
        "utilisation": 2 * count / mesh.size / 1e12 / chip.teraflops / seconds,
        "audio_seconds_per_second": audio / seconds,
        "collectives": collectives,
        "crossing_seconds": crossing,
        "costliest": [
            {"line": line, "share": spent / cycles, "name": name}
            for line, spent, name in hlo.costliest(found)
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
        (
            f"  between chips: {crossing or 'nothing'}, which takes"
            f" {found['crossing_seconds'] * 1e3:.1f} ms of the step"
        ),
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

    from svc_jax import checkpoints, sharding, steps
    from svc_jax.errors import UserError

    chip = flags.topology.partition(":")[0]
    if chip not in hlo.CHIPS:
        raise UserError(
            f"--topology={flags.topology}: chips are {', '.join(hlo.CHIPS)}; name one as in"
            " v5e:4x4."
        )
    try:
        devices = sharding.devices_of_slice(flags.topology)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--topology={flags.topology}: {command_line.one_line(error)}; is libtpu"
            ' installed (pip install -e ".[train,data,tpu]"), and is there such a slice?'
        ) from error
    config = flags.config
    mesh = sharding.mesh_of(devices, config.num_model)
    config.unlock()
    config.batch_size = flags.batch_per_chip * mesh.shape["data"]
    found = []
    print(f"{flags.topology}: {mesh.size} chips, batch {config.batch_size}", flush=True)
    for phase in steps.PHASES:
        found.append(report(config, phase, mesh, hlo.CHIPS[chip], flags.num_singers))
        print("\n".join(lines(found[-1])), flush=True)
    hours = total_hours(config, found)
    print(f"{config.num_steps} steps: {hours:.1f} hours by XLA's estimate")
    if flags.json:
        told = {"topology": flags.topology, "jax": jax.__version__, "hours": hours}
        checkpoints.write_json(flags.json, {**told, "phases": found})


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
