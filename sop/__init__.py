"""Second-order and global pooling for image networks, in JAX and Flax."""
