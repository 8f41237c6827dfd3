"""Writing-style agnostic text-video retrieval, distributed with Ray."""

__version__ = "0.1.0"
