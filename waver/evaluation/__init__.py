"""Exact retrieval metrics, and everything that is computed from them."""
