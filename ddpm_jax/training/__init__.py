"""Training: the only part of the library that uses optax and Orbax. `loop.train` runs it all."""
