"""The live page: an index of the scores, questions to it, and the server that answers them."""
