"""Run by a rank of a job: join it, and say what MLflow found in the environment when it was imported."""

import logging
import os

from trainer.processes import end_process, joined

if __name__ == "__main__":
    with joined(1):
        print(os.environ["MLFLOW_DISABLE_TELEMETRY"], logging.getLogger("mlflow").level == logging.WARNING)
    end_process(0)
