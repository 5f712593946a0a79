"""Training: the only part of the library that uses optax.

`loop.train` runs everything, for every kind of network: `parts` has what differs between them.
"""
