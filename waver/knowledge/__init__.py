"""The dictionary of phrases, and which of them describe each clip."""
