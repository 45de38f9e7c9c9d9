"""Tests of pipeline/grpo/run."""
