"""Int8 graphs: which products, which scales."""
