"""The stages of an experiment on Ray: ingest, embed, vocabulary, match, train, evaluate, robustness."""
