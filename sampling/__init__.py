"""Both stages together: sampling, completing, and the likelihood of images."""
