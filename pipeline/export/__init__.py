"""Shards for other trainers and for the hub: their formats, the reward as one file of its own, cards and metadata."""
