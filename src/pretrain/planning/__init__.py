"""What `pretrain.plan` is made of: chips, topologies, the reading of compiled programs, search."""
