"""What `train.py` does: data sets, training runs, tables and pictures."""
