"""What the random layers of a model do, measured by calling them."""
