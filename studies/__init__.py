"""What dropout does on real data: `python -m studies NAME`."""
