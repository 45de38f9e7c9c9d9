"""Scoring: a proxy model's uncertainty at every position of a corpus."""
