"""Runs search methods on a question set and measures accuracy, cost and calibration."""
