"""Scores of scans, made up."""

from trainer.metrics import ScanScore


def score(key: str, dsc: float | None, distance: float = 3.0, mm: float | None = None) -> ScanScore:
    """A scan's score, all of whose measures follow from two; without a DSC it is a normal scan that was marked."""
    if dsc is None:
        return ScanScore(key, key, "normal", lesion=False, marked=True, marked_fraction=0.1)
    far = {name: value for unit, by in (("px", distance), ("mm", mm)) for name, value in _surface(unit, by).items()}
    return ScanScore(key, key, "benign", True, dsc > 0, 0.1, dsc, dsc, dsc, dsc / (2 - dsc), 1 - dsc, **far)


def _surface(unit: str, distance: float | None) -> dict[str, float | None]:
    return {f"{name}_{unit}": distance for name in ("rms_surface_distance", "assd", "hd95")} | {
        f"surface_dice_{unit}": None if distance is None else 0.5
    }
