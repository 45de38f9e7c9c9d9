"""Readers of the formats of a corpus: the records of a file, each with its location, its bytes and its columns."""
