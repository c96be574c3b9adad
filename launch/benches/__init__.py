"""Measurements beside others, of which `sonotrain bench` is the command."""
