"""Stage 1: images to a grid of discrete codes and back."""
