"""Tests of pipeline/grpo/model."""
