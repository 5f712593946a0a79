"""Training: the only part of the library that uses optax. `loop.train` runs it all."""
