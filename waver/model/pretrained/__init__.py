"""Pre-trained weights: where they are, how their files are read, named and converted, and what they were trained with."""
