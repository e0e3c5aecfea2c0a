"""How masks are made: random words, kinds of noise, and one fused pass."""
