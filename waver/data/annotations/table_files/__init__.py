"""Reads the file of a user's own table, and says what a file is that is no table."""
