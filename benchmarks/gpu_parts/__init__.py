"""The parts of `benchmarks/gpu.py`: each has `run(rows)`."""
