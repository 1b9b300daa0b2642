"""params.yaml as frozen, validated objects: the one place for every number that changes a result. No torch."""

from common.params.load import load, read_yaml, validate
from common.params.root import Params

__all__ = ["Params", "load", "read_yaml", "validate"]
