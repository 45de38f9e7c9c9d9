"""`rpt plan`: what a manifest or a recipe will cost."""
