"""Kernels: each op beside its plain jnp reference, behind one protocol."""
