"""Train grids of sparse autoencoders (SAEs) and find out which features belong to the language model."""

__version__ = "0.1.0"
