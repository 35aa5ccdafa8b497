"""Judges say whether a step is right, wrong or unknown, given a right prefix."""
