"""Fast decoding of priors token by token: matrix products, the key-value cache, and the layers of transformers."""
