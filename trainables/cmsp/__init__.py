"""Compositional multitask sparse parity (arXiv:2505.15811, section 2)."""
