"""Tests of pipeline/grpo/algorithm."""
