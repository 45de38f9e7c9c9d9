"""GRPO training: the algorithm, model, policy, rollouts, data and run, one package per role."""
