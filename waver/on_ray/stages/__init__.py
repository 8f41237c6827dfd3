"""The stages of an experiment on Ray: ingest, vocabulary, match, train, evaluate, robustness."""
