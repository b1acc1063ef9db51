"""What narrowing is made of: units, scores, selection, penalties and surgery (arXiv:2505.15811, sections 3 and 4).

Knows no task and has no training loop: networks are mappings from parameter names to tensors.
"""
