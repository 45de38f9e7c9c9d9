"""The stages, one module each: its inputs, outputs and command are in its docstring."""
