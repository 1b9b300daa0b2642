"""Networks: one file each, found by its name in params.yaml."""
