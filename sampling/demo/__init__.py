"""A page in the browser: draw, complete, take apart and measure images with published models."""
