"""What a config says of how networks compute: in which type, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fast, multi
from svc_jax import builders, describe, steps
from svc_jax.errors import UserError

WAV2LETTER = {"channels": 4, "wide_channels": 6, "kernels": (6, 3), "wide_kernel": 4}
CONFIGS = {"wavenet": multi, "source_filter": fast}
AUDIO = jax.ShapeDtypeStruct((1, 16_000), np.float32)


def networks(name: str, **changes) -> steps.Networks:
    config = CONFIGS[name].get_config("demo")
    config.update(changes)
    extractor = builders.extractor(builders.geometry(config), WAV2LETTER, "wide", None)
    return builders.networks(config, 3, extractor)


def equations(jaxpr):
    """Every equation of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                yield from equations(value.jaxpr)


def inputs(nets: steps.Networks):
    features, noise = steps.example_inputs(nets.extractor, 6400)
    return features.replace(f0_hz=features.f0_hz + 220.0), noise


def abstract_params(nets: steps.Networks):
    def init(rng):
        return steps.init_generator(nets.generator, nets.extractor, rng)

    return jax.eval_shape(init, jax.random.key(0))


def singing(nets: steps.Networks):
    features, noise = inputs(nets)

    def sing(params):
        voice = steps.embed(nets, params, jnp.zeros(1, jnp.int32))
        return steps.sing(nets, params, features, voice, noise)

    return sing


@pytest.mark.parametrize("name", CONFIGS)
def test_generators_multiply_in_bfloat16_and_keep_float32_weights(name):
    nets = networks(name, precision="bfloat16")
    params = abstract_params(nets)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(singing(nets))(params)
    assert {out.dtype for out in program.out_avals} == {jnp.dtype("float32")}
    products = [
        equation.invars[0].aval.dtype.name
        for equation in equations(program.jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    # The fast one's first and last layer are what its source and filters meet.
    rest = {"wavenet": 0, "source_filter": 2}[name]
    assert products.count("float32") == rest
    assert products.count("bfloat16") > 10


@pytest.mark.parametrize("name", CONFIGS)
def test_discriminators_multiply_in_bfloat16(name):
    judge = networks(name, precision="bfloat16").discriminator
    variables = jax.eval_shape(judge.init, jax.random.key(0), AUDIO)
    assert {x.dtype.name for x in jax.tree.leaves(variables)} == {"float32"}
    program = jax.make_jaxpr(judge.apply)(variables, AUDIO)
    kinds = {
        equation.invars[0].aval.dtype.name
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    }
    assert kinds == {"bfloat16"}


def test_what_layers_compute_in_bfloat16_is_nearly_the_same():
    exact, rough = (networks("source_filter", precision=p) for p in builders.PRECISIONS)

    def init(rng):
        return steps.init_generator(exact.generator, exact.extractor, rng)

    params = jax.jit(init)(jax.random.key(0))
    expected, found = (jax.jit(singing(nets))(params) for nets in (exact, rough))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.02


@pytest.mark.parametrize("name", CONFIGS)
def test_remat_keeps_less_for_the_backward_pass(name):
    def kept(remat):
        nets = networks(name, remat=remat)
        params = abstract_params(nets)
        back = jax.eval_shape(lambda p: jax.vjp(singing(nets), p)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(back))

    none, dots, full = map(kept, ("none", "dots", "full"))
    assert full < dots < none
    # The fast one's source and transforms are outside of its layers.
    assert full < {"wavenet": 0.4, "source_filter": 0.7}[name] * none


def test_remat_does_not_change_what_a_run_is_described_by():
    plain, remat = (networks("wavenet", remat=r) for r in ("none", "full"))
    assert describe.table(remat) == describe.table(plain)


def test_remat_changes_no_gradient():
    plain, remat = (networks("source_filter", remat=r) for r in ("none", "full"))

    def init(rng):
        return steps.init_generator(plain.generator, plain.extractor, rng)

    params = jax.jit(init)(jax.random.key(0))
    assert jax.tree.structure(abstract_params(remat)) == jax.tree.structure(params)

    def gradient(nets):
        return jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(singing(nets)(p)))))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        gradient(plain)(params),
        gradient(remat)(params),
    )


def test_networks_multiply_as_the_config_says():
    def primitives(form):
        nets = networks("wavenet", convolution=form)
        variables = jax.eval_shape(nets.discriminator.init, jax.random.key(0), AUDIO)
        programs = (
            jax.make_jaxpr(singing(nets))(abstract_params(nets)),
            jax.make_jaxpr(nets.discriminator.apply)(variables, AUDIO),
        )
        return [
            equation.primitive.name
            for program in programs
            for equation in equations(program.jaxpr)
        ]

    assert primitives("direct").count("conv_general_dilated") > 10
    assert "conv_general_dilated" not in primitives("product")
    assert primitives("auto") == primitives("direct")  # there is no TPU here


@pytest.mark.parametrize("key", ["precision", "remat", "convolution"])
def test_unknown_choices_are_refused(key):
    with pytest.raises(UserError, match=f"config.{key} is 'int3'; choose one of"):
        networks("wavenet", **{key: "int3"})
