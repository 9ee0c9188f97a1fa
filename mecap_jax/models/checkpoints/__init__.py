"""Checkpoint layouts of the Hugging Face families: one table each, read in both directions."""
