"""A Job under Slurm: a batch script is submitted, and supervises the job from the first node that Slurm gives it."""

from launch.slurm.submit import SlurmOptions, plan, run

__all__ = ["SlurmOptions", "plan", "run"]
