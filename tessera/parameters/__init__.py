"""params.yaml as frozen, validated objects: the one place for every number that changes a result. No torch."""

from tessera.parameters.load import load, read_yaml, validate
from tessera.parameters.root import Params

__all__ = ["Params", "load", "read_yaml", "validate"]
