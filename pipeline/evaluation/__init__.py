"""Evaluation: next-token accuracy on held-out documents, by direct prediction and by reasoning."""
