"""How the ranks of one machine find each other. Starts without torch."""

MEETING_FILE = "RPT_MEETING_FILE"
"""Environment variable: a file by which the ranks of one machine meet, so that no port is opened."""
