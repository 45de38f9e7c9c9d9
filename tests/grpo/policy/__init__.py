"""Tests of pipeline/grpo/policy."""
