"""What benchmarks are made of. None of it is a benchmark: `make bench` runs the files beside this folder."""
