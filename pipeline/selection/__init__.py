"""Selection: which scored positions become training sites."""
