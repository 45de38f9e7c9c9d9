"""Audit: reports, comparisons and pages about what a selection kept, and the lineage of its data."""
