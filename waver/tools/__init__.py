"""General tools that know nothing of retrieval."""
