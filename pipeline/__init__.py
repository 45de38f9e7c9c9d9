"""The library that the stages are made of."""
