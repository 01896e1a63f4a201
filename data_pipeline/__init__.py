"""Recordings to datasets, datasets to batches."""

import os

# TensorFlow's start-up notes would drown our own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
