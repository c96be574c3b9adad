"""A Job on Kubernetes: the manifests, and kubectl, which sends them to a cluster."""

from launch.kubernetes.kubectl import plan, run
from launch.kubernetes.manifest import as_yaml, manifest
from launch.kubernetes.options import KINDS, Options

__all__ = ["KINDS", "Options", "as_yaml", "manifest", "plan", "run"]
