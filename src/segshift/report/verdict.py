"""Whether adaptation beat the source-only control, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segshift.report.reading import Run
from segshift.report.values import points

State = Literal["helped", "same", "hurt", "none"]

CLEAR = 0.005
"""Half a point of mIoU: a smaller difference is called no clear one. Two seeds of one method differ by more."""

WORDS: dict[State, str] = {
    "helped": "Adaptation helped",
    "same": "No clear difference",
    "hurt": "Adaptation hurt",
    "none": "No verdict",
}


@dataclass(frozen=True)
class Verdict:
    """The state in one word, as a headline, and as a plain sentence with the numbers."""

    state: State
    headline: str
    sentence: str


def judge(run: Run) -> Verdict:
    """The verdict of a run; its numbers decide, and what the run itself recorded where they leave room."""
    scores = run.scores
    if scores is None:
        return Verdict("none", *_why_none(run))
    control, adapted, gain = scores.control, scores.adapted, scores.gain
    images = next((model.images for model in (adapted, control) if model and model.images), None)
    where = f"On the {images} labelled images of {scores.domain}" if images else f"On {scores.domain}"
    if control is None or adapted is None or gain is None or control.miou is None or adapted.miou is None:
        known = adapted if adapted and adapted.miou is not None else control
        if known is None or known.miou is None:
            sentence = scores.verdict or "metrics.json holds no mIoU of the control or the adapted model."
            return Verdict("none", "No verdict", sentence)
        lacks = "source-only control" if known is adapted else "adapted model"
        sentence = f"{where}, {known.name} reached {points(known.miou)} mIoU; there is no {lacks} to compare it with."
        if not run.adapts:
            sentence = f"{where}, {known.name} reached {points(known.miou)} mIoU."
        if not run.adapts:
            return Verdict("none", "Trained on the source alone: no verdict", sentence)
        return Verdict("none", f"No {lacks}: no verdict", sentence)
    state = scores.state or _state(gain, scores.helped)
    before, after = points(control.miou), points(adapted.miou)
    size = points(abs(gain))
    change = f"{size} points {'more' if gain > 0 else 'less'}" if size != "0.0" else "no difference"
    against = f"{before} for {control.name}, the source-only control"
    sentence = f"{where}, {adapted.name} reached {after} mIoU against {against}: {change}."
    if scores.interval is not None:
        low, high = (f"{100 * bound:+.1f}" for bound in scores.interval)
        sentence += f" Over the choice of images, the gain lies between {low} and {high} points (95 % interval)."
    return Verdict(state, WORDS[state], sentence)


def _state(gain: float, helped: bool | None) -> State:
    if helped is True and gain > 0:
        return "helped"
    if gain <= -CLEAR:
        return "hurt"
    return "helped" if gain >= CLEAR and helped is None else "same"


def _why_none(run: Run) -> tuple[str, str]:
    if any(problem.startswith("metrics.json") for problem in run.problems):
        return "No verdict", "metrics.json is damaged, see below: evaluate the run again."
    if run.unfinished:
        return (
            "Not finished: no verdict yet",
            "The run has not come to its end; the same command again goes on with it.",
        )
    return (
        "No labelled part: no verdict",
        "Nothing here says whether adaptation helped: that takes some labelled images of the target domain. "
        "Compare the panels below by eye, or label a few images and run evaluate.",
    )
