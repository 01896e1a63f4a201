"""A table of a run's networks: parameters, receptive fields, cost, rates."""

import math

import jax
import jax.numpy as jnp

from svc_jax import steps
from svc_jax.models.crepe import Crepe


def multiply_adds(jaxpr) -> dict[str, int]:
    """Multiply-adds of the convolutions and matrix products of a program, by module.

    Args:
      jaxpr: of a function that applies a flax module.

    Returns:
      dict of the submodule's name, or "" outside of one, to a count.
    """
    counts: dict[str, int] = {}

    def visit(jaxpr, times=1, outer=()):
        for equation in jaxpr.eqns:
            # A name with a dot is a method's, not a module's.
            names = str(equation.source_info.name_stack).split("/")
            scopes = outer + tuple(x for x in names if x and "." not in x)
            name = equation.primitive.name
            if name == "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                count = math.prod(equation.outvars[0].aval.shape) * math.prod(
                    kernel[:-1]
                )
            elif name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                count = math.prod(equation.outvars[0].aval.shape) * math.prod(
                    left[axis] for axis in contracted
                )
            else:
                # What a loop repeats stands in it once.
                repeats = equation.params["length"] if name == "scan" else 1
                # The last branch of what depends on the platform is the plain form.
                branches = equation.params.get("branches", ())[-1:]
                for value in (*equation.params.values(), *branches):
                    inner = getattr(value, "jaxpr", value)
                    if isinstance(inner, jax.extend.core.Jaxpr):
                        visit(inner, times * repeats, scopes)
                continue
            # The first scope is the module itself, the second its part.
            part = scopes[1] if len(scopes) > 1 else ""
            counts[part] = counts.get(part, 0) + times * count

    visit(jaxpr.jaxpr)
    return counts


def num_parameters(params) -> int:
    """Numbers in a tree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _rows(module, params, parts: dict, jaxpr, seconds: float) -> list[tuple]:
    """Table rows of a module: its parts, then the whole where it has several."""
    counts = multiply_adds(jaxpr)
    rows = []
    for name, value in params.items():
        rate, reach = parts.get(name, (None, None))
        cost = 2 * counts.get(name, 0) / seconds / 1e9
        rows.append((name, num_parameters(value), rate, reach, cost))
    total = 2 * sum(counts.values()) / seconds / 1e9
    rate, reach = parts.get("", (None, None))
    return [
        (type(module).__name__, num_parameters(params), rate, reach, total),
        *((f"  {row[0]}", *row[1:]) for row in rows if row[0] in parts),
    ]


def table(networks: steps.Networks) -> str:
    """Modules, parameters, receptive fields and GFLOP (2 x multiply-adds) per second.

    Args:
      networks: of a run.

    Returns:
      Lines of text.
    """
    extractor = networks.extractor
    geometry = extractor.geometry
    seconds = geometry.segment_samples / geometry.sample_rate
    rng = jax.random.key(0)
    init = jax.eval_shape(
        lambda: steps.init_generator(networks.generator, extractor, rng)
    )
    features, noise = steps.example_inputs(extractor, geometry.segment_samples)

    def sing(params):
        voice = steps.embed(networks, params, jnp.zeros(1, jnp.int32))
        return steps.sing(networks, params, features, voice, noise)

    audio = jnp.zeros((1, geometry.segment_samples))
    discriminator = networks.discriminator
    d_params = jax.eval_shape(discriminator.init, rng, audio)["params"]
    mfcc = jnp.zeros((1, 2 * geometry.segment_asr_frames, 39))
    wav2letter = extractor.wav2letter
    w_params = jax.eval_shape(wav2letter.init, rng, mfcc)["params"]
    crepe = extractor.crepe or Crepe("tiny")
    num_frames = geometry.sample_rate // extractor.f0_hop
    frames = jnp.zeros((num_frames, 1024))
    c_params = jax.eval_shape(crepe.init, rng, frames)["params"]

    def apply(module):
        return lambda params, x: module.apply({"params": params}, x)

    rows = [
        *_rows(
            networks.generator,
            init,
            networks.generator.parts(),
            jax.make_jaxpr(sing)(init),
            seconds,
        ),
        *_rows(
            discriminator,
            d_params,
            {"": (geometry.sample_rate, discriminator.receptive_field())},
            jax.make_jaxpr(apply(discriminator))(d_params, audio),
            seconds,
        ),
        *_rows(
            wav2letter,
            w_params,
            {"": (geometry.asr_frame_rate, None)},
            jax.make_jaxpr(apply(wav2letter))(w_params, mfcc),
            seconds,
        ),
        *_rows(
            crepe,
            c_params,
            {"": (geometry.sample_rate / extractor.f0_hop, 1024)},
            jax.make_jaxpr(apply(crepe))(c_params, frames),
            1.0,
        ),
    ]
    header = ("module", "parameters", "rate", "receptive field", "GFLOP/s of audio")
    lines = ["{:24s} {:>12s} {:>10s} {:>24s} {:>17s}".format(*header)]
    for name, count, rate, reach, cost in rows:
        rate_text = f"{rate:g} Hz" if rate else ""
        milliseconds = 1e3 * (reach or 0) / geometry.sample_rate
        reach_text = f"{reach} = {milliseconds:.1f} ms" if reach else ""
        lines.append(
            f"{name:24s} {count:12,d} {rate_text:>10s} {reach_text:>24s} {cost:17.2f}"
        )
    return "\n".join(lines)
