"""A run from start to end: data, supervised fine-tuning, reinforcement learning, evaluation, report."""
