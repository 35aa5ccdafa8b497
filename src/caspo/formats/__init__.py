"""Trees, pairs and labelled solutions as files: our own Parquet, and the public formats, read and written."""
