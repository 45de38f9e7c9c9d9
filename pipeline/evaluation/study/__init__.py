"""Comparisons of several runs: the jobs of a study or of `rpt worth`, figures over seeds, claims, power, reports."""
