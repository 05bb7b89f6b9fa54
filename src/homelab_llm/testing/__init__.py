"""Testing kit: real, small implementations of the seams, shipped so that others can test against them."""
