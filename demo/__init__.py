"""The embedded default: a small corpus, a tiny proxy and a tiny policy, so that every stage runs on two cores."""
