"""The repository that these scripts measure. To import this puts its packages before all else: before those of another
checkout that is installed, and before scripts of the same name, such as sampling.py beside this file."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
