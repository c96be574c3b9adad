"""Raw scans to shards in object storage to batches on the device."""

from data_pipeline.augment import as_floats, augment
from data_pipeline.chance import Chance
from data_pipeline.faults import Fault, Refused, WrongCall
from data_pipeline.fitting import resize_mask
from data_pipeline.index import Index, Sample, Shard
from data_pipeline.mixture import dataset_names, open_datasets
from data_pipeline.nodecache import NodeCache
from data_pipeline.objectstore import open_store
from data_pipeline.plan import EpochPlan, plan_epoch, rank_places
from data_pipeline.resident import Resident, resident_scans
from data_pipeline.scan import Findings, Scan, ScanFiles, read_scan
from data_pipeline.shards import Dataset, open_dataset, require_free, verify_dataset, write_dataset
from data_pipeline.stream import Batch, stream_batches, stream_scans

__all__ = [
    "Batch",
    "Chance",
    "Dataset",
    "EpochPlan",
    "Fault",
    "Findings",
    "Index",
    "NodeCache",
    "Refused",
    "Resident",
    "Sample",
    "Scan",
    "ScanFiles",
    "Shard",
    "WrongCall",
    "as_floats",
    "augment",
    "dataset_names",
    "open_dataset",
    "open_datasets",
    "open_store",
    "plan_epoch",
    "rank_places",
    "read_scan",
    "require_free",
    "resident_scans",
    "resize_mask",
    "stream_batches",
    "stream_scans",
    "verify_dataset",
    "write_dataset",
]
