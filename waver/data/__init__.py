"""Captions, clips and batches."""
