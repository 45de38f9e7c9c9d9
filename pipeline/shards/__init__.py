"""Shards: training examples on disk, how they are written and read, and what they cost."""
