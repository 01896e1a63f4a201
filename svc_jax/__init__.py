"""Unsupervised cross-domain singing voice conversion in JAX."""
