"""Likelihoods, which are distributions over 8-bit pixels. Each option is one file, named as in params.yaml."""
