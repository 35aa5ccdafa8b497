"""Step-wise preference training: trees in, loss out."""
