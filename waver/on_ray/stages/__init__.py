"""The stages of an experiment on Ray, one file each."""
