"""The commands that bring artifacts to other trainers and to the Hub, and from there."""
