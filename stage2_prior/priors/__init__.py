"""Priors. A file with a class `Parameters` is an option, named as in params.yaml; the other files help them.

`base` and `autoregressive` hold the base classes, `build` builds a prior by its name.
"""
