"""Configurations searched: trials on a cluster, what they came to, and which is the best."""
