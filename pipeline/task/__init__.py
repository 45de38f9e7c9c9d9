"""The task of next-token reasoning: prompt templates, extraction, rewards. Standard library only, for reuse alone."""
