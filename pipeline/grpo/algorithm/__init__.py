"""The algorithm: advantages, losses and the objective, as pure functions of tensors."""
