"""Rollouts: prompts, samplers, decoding and rewards."""
