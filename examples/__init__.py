"""Short programs to read and run."""
