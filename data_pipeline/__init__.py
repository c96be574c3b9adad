"""Raw scans to shards in object storage to batches on the device."""

from data_pipeline.faults import Fault, Refused, WrongCall
from data_pipeline.scan import Findings, Scan, ScanFiles, read_scan

__all__ = ["Fault", "Findings", "Refused", "Scan", "ScanFiles", "WrongCall", "read_scan"]
