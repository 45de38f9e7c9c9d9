"""The policy under training: engine, update, weights and processes."""
