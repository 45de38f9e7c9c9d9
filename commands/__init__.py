"""The command line, and what only inspects, maintains or exchanges."""
