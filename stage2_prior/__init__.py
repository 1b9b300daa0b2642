"""Stage 2: a prior over the codes."""
