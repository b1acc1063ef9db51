"""Causal language models of transformers: what they consist of, gates on their units, surgery, files.

Knows no family of models by name; needs the `transformers` library.
"""
