"""`waver quickstart`: renders a small world of videos and runs every stage on it, without downloads."""
