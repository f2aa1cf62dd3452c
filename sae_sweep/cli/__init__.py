"""Everything that knows Hydra: schemas, grids, composition, diagnosis and the sweeper plugin."""
