"""Unsupervised cross-domain singing voice conversion in JAX.

import svc_jax
model = svc_jax.load("models/choir")
audio = model.convert(audio, 44_100, "alto")
"""


def load(path):
    """A trained model, from a workdir or a folder made by export: bundles.Model.

    Raises:
      UserError: if there is no model, or it is damaged.
    """
    from svc_jax import bundles

    return bundles.load(path)
