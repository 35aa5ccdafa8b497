"""Question sets, one file each, with their grader."""
