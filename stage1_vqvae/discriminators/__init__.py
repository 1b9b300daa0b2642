"""Discriminators. Each option is one file, named as in params.yaml; base.py has the class that all of them extend."""
