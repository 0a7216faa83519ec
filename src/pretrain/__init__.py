"""pretrain: language-model pretraining in JAX, from a laptop to thousands of chips."""
