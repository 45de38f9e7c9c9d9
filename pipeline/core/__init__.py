"""What every stage shares: artifacts, executors, Parquet, progress, tokenizers and model folders."""
