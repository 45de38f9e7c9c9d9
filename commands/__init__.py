"""The command line, and the commands that inspect, maintain or exchange artifacts."""
