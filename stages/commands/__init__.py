"""The commands of `rpt`, a module a group. Each is a thin wrapper around a page of `stages/`."""
