"""Weights of other libraries, and ours in their layout."""
