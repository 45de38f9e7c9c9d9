"""The model's side: log-probabilities, packing, attention and adapters."""
