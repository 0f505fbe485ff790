"""How each family names its tensors, one family a file."""
