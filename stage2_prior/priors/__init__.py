"""Priors: one file each, found by its name in params.yaml. `base` has what they share."""
