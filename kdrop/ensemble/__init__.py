"""Monte Carlo samples, exact ensembles, and how far to trust their predictions."""
