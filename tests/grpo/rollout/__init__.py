"""Tests of pipeline/grpo/rollout."""
