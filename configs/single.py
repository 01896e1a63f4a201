"""One singer: the paper's networks without an embedding, L_G and L_D alone.

Run:   python -m svc_jax.train --config=configs/single.py --workdir=runs/alto \
           --config.data.dir=datasets/alto
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The paper's setting for a dataset of one singer."""
    config = common.paper_config()
    config.generator.embedding_size = 0
    return config
