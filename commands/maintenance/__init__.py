"""The commands that report on artifacts and on the machine, check, and clean up."""
