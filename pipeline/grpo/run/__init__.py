"""A run: its folder, checkpoints, metrics, trackers and the loop that every trainer shares."""
