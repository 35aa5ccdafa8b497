"""Engines turn prompts into steps with token traces; `models` finds and loads the models."""
