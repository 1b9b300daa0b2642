"""Both stages together: sampling, completing, and the likelihood of images."""

import tessera  # noqa: F401  which tells what to do where packages are missing, before this package asks for them
