"""What tests of kernels ask alike: equal values, and what a TPU's compiler says."""

import jax
import numpy as np

from svc_jax import hlo, sharding


def assert_alike(found, expected, atol: float):
    """Two trees of arrays are equal within rounding."""
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol)


def what_crosses(mesh, function, split, whole) -> set[str]:
    """Kinds of collectives in a function as a TPU's compiler makes it.

    Args:
      mesh: of the chips.
      function: of all arrays.
      split: shapes of the arrays that are split over the devices.
      whole: of those that every device has; each may be a tree.
    """

    def on(place, tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
        )

    shapes = on(sharding.batch_sharding(mesh), split)
    shapes += on(sharding.replicated(mesh), whole)
    program = jax.jit(sharding.on_mesh(function, mesh)).lower(*shapes).compile()
    return set(hlo.collectives(program.as_text()))
