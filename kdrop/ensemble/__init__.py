"""Sub-networks: sampled, enumerated, and how far their predictions can be trusted."""
