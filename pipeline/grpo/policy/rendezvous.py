"""Rendezvous of the ranks of one machine. Imports no torch."""

MEETING_FILE = "RPT_MEETING_FILE"
"""Environment variable with the path of a file store, by which ranks of one machine meet without opening a port."""
