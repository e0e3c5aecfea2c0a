"""What kdrop costs, in time and memory: `python -m benchmarks NAME...`."""
