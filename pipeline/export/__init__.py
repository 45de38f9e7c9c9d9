"""Exports shards to other trainers and to the Hub: formats, the reward as a single file, cards and metadata."""
