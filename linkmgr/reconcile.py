"""After a crash or drift: what is, against what should be."""
