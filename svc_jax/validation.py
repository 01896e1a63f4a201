"""What a generator makes of recordings that it is not trained on, while it trains."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from svc_jax import measures

EXAMPLES = 3  # singers who are listened to


def measure(evaluate: Callable, batches: Sequence[dict]):
    """Losses and errors of f0 over all batches.

    Args:
      evaluate: a batch -> what steps.eval_step gives.
      batches: of this host, the same number on every one.

    Returns:
      (dict of `validation/` the terms of the losses and their total, and for what is
      sung, NAME/vde and NAME/ffe against the f0 that was asked for; of the first batch
      what is sung, dict of name -> [B, N], of all hosts).
    """
    first_sung, found = None, []
    for batch in batches:
        terms, sung, f0_hz = jax.device_get(evaluate(batch))
        first_sung = first_sung or sung
        found.append((terms, f0_hz))
    terms, f0_hz = jax.tree.map(lambda *values: np.stack(values), *found)
    values = {name: float(value.mean()) for name, value in terms.items()}
    asked = f0_hz.pop("asked")
    for name, heard in f0_hz.items():
        errors = measures.f0_measures(heard, asked)
        values |= {f"{name}/{kind}": errors[kind] for kind in ("vde", "ffe")}
    return {f"validation/{name}": value for name, value in values.items()}, first_sung


def examples(names: Sequence[str], batch: dict, sung: dict) -> Iterator[tuple]:
    """What to listen to: a segment of each of some singers, as it was and as it is sung.

    Args:
      names: of the singers.
      batch: the first one of this host.
      sung: from `measure`.

    Yields:
      (name, audio [N]): `source/alto`, `reconstruction/alto`, `conversion/alto_to_bass`.
    """
    ids, rows = np.unique(batch["singer_id"], return_index=True)
    for singer_id, row in list(zip(ids, rows, strict=True))[:EXAMPLES]:
        own, other = names[singer_id], names[(singer_id + 1) % len(names)]
        yield f"source/{own}", batch["audio"][row]
        yield f"reconstruction/{own}", sung["reconstruction"][row]
        yield f"conversion/{own}_to_{other}", sung["conversion"][row]
