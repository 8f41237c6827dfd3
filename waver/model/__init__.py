"""The student: backbone, knowledge fusion, temporal aggregator, interaction."""
