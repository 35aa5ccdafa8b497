"""The loop: recipes, their stages, the run that joins them, thresholds and the supervised start."""
