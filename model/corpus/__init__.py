"""A corpus: where it lies, what it holds, what is wrong with it, and how to make, convert and pack one. No torch."""
