"""What a comparison shows in sentences, and what to do with its models."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdrop.training.report import mean_and_spread, parts_of
from kdrop.training.run import SeedRuns


def findings(results: Sequence[SeedRuns]) -> list[str]:
    """A sentence for each experiment, compared with the one without dropout.

    Where there is none, they are compared with the first. Measured on the last part of
    the data: the test part, if there is one.
    """
    baseline = next((x for x in results if x.name == "none"), results[0])
    metrics, seeds = baseline.runs[0].metrics, len(baseline.runs)
    part = parts_of(metrics)[-1]
    measures = [x for x in ("loss", "calibration_error") if f"{part}_{x}" in metrics]

    def column(result: SeedRuns, measure: str) -> np.ndarray:
        return np.array([run.metrics[f"{part}_{measure}"] for run in result.runs])

    def diverged(result: SeedRuns) -> int:
        columns = [column(result, measure) for measure in measures]
        return int(np.sum(~np.isfinite(columns).all(axis=0)))

    sentences, compared = [], False
    for result in results:
        if count := diverged(result):
            of_seeds = f" with {count} of {seeds} seeds" if seeds > 1 else ""
            sentences.append(
                f"{result.name} diverged{of_seeds}: its loss is not a finite number. "
                "Try a lower --learning-rate."
            )
            continue
        alone = len(results) == 1 or diverged(baseline)
        if result is baseline and not alone:
            continue
        accuracy = 100 * column(result, "accuracy")
        name = "Without dropout" if result.name == "none" else f"With {result.name}"
        text = f"{name}: {part} accuracy {mean_and_spread(accuracy.tolist(), 1)} %"
        if not alone:
            compared, gain = True, accuracy - 100 * column(baseline, "accuracy")
            spread = f" ± {gain.std(ddof=1):.1f}" if seeds > 1 else ""
            text = f"{name} instead of {baseline.name}: {part} accuracy "
            text += f"{gain.mean():+z.1f}{spread} points"
        if len(measures) > 1:
            pair = [result] if alone else [baseline, result]
            errors = (f"{column(x, measures[1]).mean():.3f}" for x in pair)
            text += f", calibration error {' -> '.join(errors)}"
        sentences.append(f"{text}.")
    if compared and seeds > 1:
        note = f"These are means of {seeds} seeds ± the standard deviation of the gain."
        sentences.append(note)
    elif compared:
        sentences.append("This is one seed: --seeds 5 shows how much of it is chance.")
    return sentences


def next_steps(paths: Sequence[Path]) -> list[str]:
    """Where the exported models are, what to open, and how to serve them."""
    if not paths:  # another process than the first
        return []
    opened = next((x for x in paths if not x.parent.name.endswith("none")), paths[0])
    return [
        *(f"saved  {path}" for path in paths),
        f"open   {opened / 'report.html'}",
        f"serve  python -m kdrop.serving {shlex.quote(str(opened.parents[1]))}",
        "ask    http://127.0.0.1:8501 in a browser; report.html shows how with curl",
    ]
