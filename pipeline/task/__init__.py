"""What next-token reasoning is: prompt templates, extraction, reward. Standard library only, so that others can take it
alone."""
