"""The science: what a trial computes. Plain PyTorch; only `ray_trainable.py` knows of Ray."""
