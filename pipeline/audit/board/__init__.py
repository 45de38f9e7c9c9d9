"""The Run tab of `rpt browse`, which `rpt board` serves alone: curves and rollouts of training runs, live or copied."""
