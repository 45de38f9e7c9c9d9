"""Source files: found in folders, archives, on the Hub or at URLs, chosen by format and split, and opened."""
