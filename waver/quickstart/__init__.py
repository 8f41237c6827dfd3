"""The small rendered world that runs everything without downloads."""
