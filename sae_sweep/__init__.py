"""Train grids of sparse autoencoders (SAEs) and tell which features belong to the language model."""

__version__ = "0.1.0"
