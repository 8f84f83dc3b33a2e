"""One training loop, and what it needs: schedules, checkpoints that resume exactly, classification."""
