"""Evaluation: next-token accuracy on held-out documents, read directly and by reasoning."""
