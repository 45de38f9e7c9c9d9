"""The commands of `rpt`, one file per panel of its help."""
