"""From questions to annotated trees, from trees to preference pairs, and both to and from disk."""
