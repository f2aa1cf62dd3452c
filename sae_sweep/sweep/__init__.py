"""Everything that knows Hydra: schemas, the sweeper and launcher plugins, and what a plan of runs is."""
