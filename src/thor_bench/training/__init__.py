"""One run: loop, clock, checkpoints, who listens."""
