"""Which documents leave and which are held out: exact and near-duplicates, contamination, the split and its shards."""
