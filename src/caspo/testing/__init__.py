"""For tests of what is built on caspo: an engine that plays a script, and checks of a grader."""
