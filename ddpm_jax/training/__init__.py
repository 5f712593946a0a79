"""Training: the only part of the library that uses optax.

`loop.train` runs every kind of network. `parts` has what differs between the kinds.
"""
