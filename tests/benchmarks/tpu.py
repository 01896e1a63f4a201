"""What XLA makes of the paper's generator on chips of v5e, asked without any.

  python tests/benchmarks/tpu.py [direct | product | fused] [none | dots | full]

Forward and backward pass in bfloat16, four seconds of audio a chip, by
config.convolution and config.remat: fused and full unless they are named. Minutes on
one core. Needs `pip install -e ".[train,tpu]"`.
"""

import sys
import time

import jax
import jax.numpy as jnp

from configs import multi
from svc_jax import builders, hlo, sharding, steps

SECONDS_A_CHIP = 4
CHIP = hlo.CHIPS["v5e"]


def main():
    mesh = sharding.mesh_of(sharding.devices_of_slice("v5e:2x2"), 1)
    config = multi.get_config("paper")
    config.precision = "bfloat16"
    given = sys.argv[1:]
    config.convolution, config.remat = given + ["fused", "full"][len(given) :]
    extractor = builders.extractor(builders.geometry(config), {}, "wide", "tiny")
    networks = builders.networks(config, 18, extractor, mesh.devices.flat[0])
    size = SECONDS_A_CHIP * mesh.size
    samples = config.geometry.sample_rate

    def on(place, tree, batch_size=None):
        """Shapes of arrays that lie there, of another batch size."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (batch_size, *x.shape[1:]) if batch_size else x.shape,
                x.dtype,
                sharding=place,
            ),
            tree,
        )

    def gradients(params, features, noise, singer_id):
        def power(params):
            voice = steps.embed(networks, params, singer_id)
            sung = steps.sing(networks, params, features, voice, noise)
            return jnp.mean(jnp.square(sung))

        return jax.grad(power)(params)

    params = jax.eval_shape(
        lambda: steps.init_generator(networks.generator, extractor, jax.random.key(0))
    )
    inputs = (*steps.example_inputs(extractor, samples), jnp.zeros(1, jnp.int32))
    started = time.perf_counter()
    program = (
        jax.jit(sharding.on_mesh(gradients, mesh))
        .lower(
            on(sharding.replicated(mesh), params),
            *on(sharding.batch_sharding(mesh), inputs, size),
        )
        .compile()
    )
    took = time.perf_counter() - started
    found = hlo.operations(program.as_text(), CHIP)
    cycles = sum(operation.cycles for operation in found)
    moved = program.cost_analysis()["bytes accessed"]
    kept = program.memory_analysis().temp_size_in_bytes
    print(
        f"{config.convolution}, {config.remat}: {cycles / CHIP.ghz / 1e6:.1f} ms,"
        f" {moved / 1e9:.1f} GB moved, {kept / 1e9:.1f} GB kept; compiled in {took:.0f} s"
    )
    for line, spent, name in hlo.costliest(found):
        print(f"  {spent / cycles:6.1%}  {line:24s} {name[-90:]}")


if __name__ == "__main__":
    main()
