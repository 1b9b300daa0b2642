"""Where each stage reads and writes, relative to the folder it is run in."""

from pathlib import Path

PARAMS = Path("params.yaml")
DVC_LOCK = Path("dvc.lock")
PREPARED = Path("data/prepared")
CODES = Path("data/codes")
MODELS = Path("models")
VQVAE = MODELS / "vqvae"
PRIOR = MODELS / "prior"
CLASSIFIER = MODELS / "classifier"
DECODERS = MODELS / "decoders"  # a folder for each value of sampling.decoder, which is what later stages depend on
RESULTS = Path("results")
FINGERPRINTS = RESULTS / "fingerprint"
TRACKERS = RESULTS / "trackers"  # a folder for each tracker of runtime.trackers
STATE = Path(".state")
SAMPLES = RESULTS / "sample"
SAMPLE_GRID = SAMPLES / "grid.png"
WRITTEN = (PREPARED, CODES, MODELS, RESULTS, STATE)  # all that stages write lies in these
SPLITS = ("train", "validation", "test")
