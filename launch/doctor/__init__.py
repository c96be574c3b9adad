"""Whether machines, network, store and tracker are fit for a job: `sonotrain doctor`."""
