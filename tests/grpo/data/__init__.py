"""Tests of pipeline/grpo/data."""
