"""Processes for tests, each forked from a server that has imported the package once: to start one takes no time."""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["data_pipeline", "hypothesis", "pytest"])
