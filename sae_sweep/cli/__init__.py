"""All code that uses Hydra: schemas, grids, composition, diagnosis and the sweeper plugin."""
