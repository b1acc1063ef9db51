"""Images of digits, as MNIST has them (arXiv:2505.15811, Fig 4)."""
