"""Search methods behind one `solve`: from a question and an engine to a solution."""
