"""The commands that look at what was made, one file each; `commands/groups/inspect.py` has their options."""
