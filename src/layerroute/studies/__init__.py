"""Studies: arms × seeds or sweeps, shared by any number of workers through one Optuna storage, then the report."""
