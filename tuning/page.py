"""A search as one HTML page that needs nothing beside it: pictures are in it, and nothing in it runs."""

from __future__ import annotations

import base64
import shlex
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from trainer.atomic import replacing
from tuning.figures import draw_curves, draw_importance, draw_parallel, draw_slices
from tuning.final import FinalComparison
from tuning.importance import importance_of
from tuning.journal import StudyRecord
from tuning.labels import label, percent, written
from tuning.results import Results, write_results
from tuning.results_text import answer, as_paper, cells, cost, duration, headings, meaning
from tuning.settings import Tuning, milestones, trainings
from tuning.space import Choices, Range

PAGE = "report.html"


def write_report(output: Path, tuning: Tuning, study: StudyRecord, final: FinalComparison | None = None) -> Results:
    """All that write_results writes, the importance of each key among it, the four figures, and the page.

    Takes some ten seconds. Raises Fault where a file cannot be written.
    """
    importance = importance_of(tuning, study)
    results = write_results(output, tuning, study, final, importance)
    draw_curves(tuning, study, output / "curves.png")
    draw_parallel(tuning, study, output / "parallel.png")
    draw_slices(tuning, study, output / "slices.png")
    draw_importance(importance, output / "importance.png")
    with replacing(output / PAGE) as partial:
        partial.write_text(_page(output, tuning, results), encoding="utf-8")
    return results


def _page(output: Path, tuning: Tuning, results: Results) -> str:
    pictures = {
        name: "data:image/png;base64," + base64.b64encode((output / f"{name}.png").read_bytes()).decode()
        for name in ("curves", "parallel", "slices", "importance")
    }
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"percent": percent, "signed": lambda dsc: percent(dsc, "+")}
    template = resources.files("tuning").joinpath("page.html.j2").read_text(encoding="utf-8")
    return page.from_string(template).render(
        title=f"Search of {tuning.source}",
        answer=answer(results),
        results=results,
        overview=_overview(tuning, results),
        space=[(label(key), key, *_tried(of, tuning, key)) for key, of in tuning.space.dimensions.items()],
        head=headings(results),
        rows=[(row, list(zip(cells(row, results), as_paper(row, results), strict=True))) for row in results.rows],
        meaning=meaning(results),
        pictures=pictures,
        go_on=f"sonotrain crossval {shlex.quote(str(output / 'best.yaml'))}" if results.best is not None else "",
    )


def _overview(tuning: Tuning, results: Results) -> list[tuple[str, str]]:
    """What was done, a line each."""
    tune = tuning.tune
    of_trial = [training.name for training in trainings(tune, tuning.config)]
    states = ", ".join(f"{count} {state}" for state, count in sorted(results.states.items()))
    rungs = milestones(tune, results.epochs)[:-1]
    stopping = {
        "asha": f"successive halving: one of {tune.reduction} goes on beyond epoch {', '.join(map(str, rungs))}",
        "none": "no trial is stopped early",
        "population": f"population-based training, epochs between exchanges: {tune.exchange_epochs}",
    }
    proposed = {"tpe": "Optuna's tree-structured Parzen estimator", "random": "chance"}
    lines = [
        (
            "trials",
            f"{sum(results.states.values())} of {tune.trials} ({states})" if results.states else f"0 of {tune.trials}",
        ),
        ("a trial", f"{', '.join(of_trial)}, {results.epochs} epochs each"),
        ("proposed by", proposed[tune.searcher] + ", the paper's weights first"),
        ("stopping", stopping[tune.scheduler]),
        ("cost", cost(results)),
        ("dataset", ", ".join(tuning.config.data.uris)),
    ]
    if results.trained and results.full > results.trained:
        spared = results.seconds * (results.full / results.trained - 1)
        lines.append(("spared", f"{results.full - results.trained} epochs, some {duration(spared)}"))
    return lines


def _tried(of: Range | Choices, tuning: Tuning, key: str) -> tuple[str, str]:
    """What was tried of a key, and what the configuration has."""
    own = written(tuning.space.of(tuning.config)[key])
    if isinstance(of, Choices):
        return " | ".join(map(written, of.values)), own
    scale = ", logarithmic" if of.log else ""
    return f"{of.low:g} to {of.high:g}{scale}{', and 0' if of.zero else ''}", own
