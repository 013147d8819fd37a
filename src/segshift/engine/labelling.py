"""Pseudo-labels of a domain: thresholds in one streaming pass, labels in a second one, both resumable."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from segshift.artefacts.pseudo_labels import write_ids, write_palette, write_soft
from segshift.artefacts.store import SEAL, damaged, make_folder, read_json, seal, write_json
from segshift.artefacts.thresholds import (
    BINS,
    ConfidenceHistogram,
    class_balanced,
    class_quantile,
    fixed,
    global_portion,
)
from segshift.data.domains import Domain
from segshift.engine.choosing import class_balanced_labels, confident_labels, easy_images, image_score, soft_labels
from segshift.engine.inference import Options, as_input, autocast, logits_at
from segshift.engine.produce import produce
from segshift.methods.base import Settings
from segshift.nets.base import SegmentationNet
from segshift.ops import window_vote
from segshift.types import IGNORE

PASS_COLOURS = ((90, 90, 90), (68, 119, 170), (204, 187, 68), (238, 102, 119), (170, 51, 119))
"""Colours of passes/NAME.png: chosen by the thresholds, added by voting pass 1, 2, 3, 4; no label is black."""

NOT_LABELLED = 255


class VotingSettings(Settings):
    """Sliding-window voting of TPLD. Numbers not verified against the paper (methods.md sections 8 and 20)."""

    window: int = Field(57, ge=1, description="side of the window in pixels of the working size, odd")
    alpha: float = Field(0.7, ge=0, le=1, description="weight of a pixel's own probability against the vote")
    passes: int = Field(3, ge=1, le=100, description="newly labelled pixels vote in the next pass")
    cap: float | None = Field(
        None, gt=0, le=1, description="largest threshold that a vote must pass; None: the class's own, however high"
    )

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"a window has a middle pixel: an odd side such as {value + 1}")
        return value


class SplitSettings(Settings):
    """Easy and hard images of TPLD (methods.md sections 8 and 20)."""

    mode: Literal["top_fraction", "threshold"] = "top_fraction"
    value: float = Field(0.3, ge=0, description="share of the images that is easy, or the lowest score of an easy one")

    @model_validator(mode="after")
    def _share(self) -> SplitSettings:
        if self.mode == "top_fraction" and self.value > 1:
            raise ValueError(f"value: a share of the images is at most 1 (found {self.value}); or set mode: threshold")
        return self


class LabelSettings(Settings):
    """How a labels stage chooses. Defaults: CBST (methods.md section 5)."""

    rule: Literal["class_balanced", "global", "quantile", "fixed", "argmax"] = Field(
        "class_balanced", description="how the thresholds are found, see docs/self_training.md"
    )
    portion: float = Field(0.2, ge=0, le=1, description="class_balanced and global: share of the pixels to choose")
    quantile: float = Field(0.5, ge=0, le=1, description="quantile: of each class's confidences (BDL 0.5, FDA 0.66)")
    cap: float = Field(0.9, gt=0, le=1, description="quantile: largest threshold")
    value: float = Field(0.95, gt=0, le=1, description="fixed: the threshold of every class")
    decision: Literal["auto", "quotient", "argmax"] = Field(
        "auto",
        description="argmax of p / threshold, or of p; auto: the quotient where thresholds are class-balanced",
    )
    soft_alpha: float | None = Field(None, gt=0, description="LRENT: weight of the label entropy, 0.25 in the release")
    spatial_prior: float | None = Field(
        None, gt=0, description="CBST-SP: sigma, in pixels, by which the source's class frequencies are smoothed"
    )
    voting: VotingSettings | None = None
    split: SplitSettings | None = None
    evaluation: Options = Field(Options(), description="test-time options of the network that labels")

    @property
    def provides(self) -> frozenset[str]:
        """Fields that a batch of these labels carries besides its images."""
        soft, split = {"soft_label"} if self.soft_alpha else set(), {"easy"} if self.split else set()
        return frozenset({"pseudo_label"} | soft | split)

    def thresholds(self, histogram: ConfidenceHistogram) -> Float[Tensor, " K"]:
        """Each class's threshold by the rule."""
        if self.rule == "class_balanced":
            return class_balanced(histogram, self.portion)
        if self.rule == "global":
            return global_portion(histogram, self.portion)
        if self.rule == "quantile":
            return class_quantile(histogram, self.quantile, self.cap)
        return fixed(histogram, self.value if self.rule == "fixed" else 1e-6)


@dataclass(frozen=True)
class Labels:
    """What a labeller says of one image.

    Attributes:
        stages: (1 + P, h, w) int64: labels by the thresholds alone, then after each voting pass; `IGNORE` elsewhere.
        full: (h, w) int64, the most probable class everywhere.
        soft: (K, h, w), or None.
        predicted: (K,) pixels of each class in `full`.
        above: (K,) those among them whose probability reaches the threshold.
    """

    stages: Int64[Tensor, "S h w"]
    full: Int64[Tensor, "h w"]
    soft: Float[Tensor, "K h w"] | None
    predicted: Int64[Tensor, " K"]
    above: Int64[Tensor, " K"]

    @property
    def final(self) -> Int64[Tensor, "h w"]:
        """What training uses."""
        return self.stages[-1]

    def added_in(self) -> UInt8[np.ndarray, "h w"]:
        """The voting pass that labelled each pixel, 0: none was needed, `NOT_LABELLED`: none did."""
        passes = len(self.stages) - (self.stages != IGNORE).sum(dim=0)
        return torch.where(self.final == IGNORE, NOT_LABELLED, passes).to(torch.uint8).cpu().numpy()


@dataclass(frozen=True)
class Labeller:
    """A network with the way of choosing among what it says.

    Attributes:
        net: in evaluation mode, on `device`.
        size: (w, h) of the images and of the labels.
        prior: (K, h, w) spatial prior, or None.
    """

    net: SegmentationNet
    size: tuple[int, int]
    settings: LabelSettings
    device: torch.device
    precision: str
    prior: Float[Tensor, "K h w"] | None = None

    def probabilities(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "K h w"]:
        """Softmax at the working size; with a spatial prior multiplied by it and made to sum to 1 again."""
        with autocast(self.device, self.precision):
            image = as_input(pixels, self.device)
            logits = logits_at([self.net], image, (self.size[1], self.size[0]), self.settings.evaluation)
        probabilities = logits[0].softmax(dim=0)
        if self.prior is None:
            return probabilities
        weighted = probabilities.mul_(self.prior.to(self.device))
        return weighted.div_(weighted.sum(dim=0).clamp(min=1e-30))

    def label(self, pixels: UInt8[np.ndarray, "h w 3"], thresholds: Float[Tensor, " K"]) -> Labels:
        """The labels of an image."""
        settings, p = self.settings, self.probabilities(pixels)
        t = thresholds.to(p)
        confidence, full = p.max(dim=0)
        balanced = settings.decision == "quotient" or (
            settings.decision == "auto" and settings.rule == "class_balanced"
        )
        soft = None
        if settings.soft_alpha is not None:
            soft = soft_labels(p, t, settings.soft_alpha)
            best, chosen = soft.max(dim=0)
            base = chosen.masked_fill(best == 0, IGNORE)
        else:
            base = class_balanced_labels(p, t) if balanced else confident_labels(p, t)
        stages = base[None]
        if settings.voting is not None:
            how = settings.voting
            # A class whose threshold is 1 for all that float32 can tell would never be densified.
            needed = t if how.cap is None else torch.where(t <= 1, t.clamp(max=how.cap), t)
            stages = torch.cat([stages, window_vote(p, base, needed, how.window, how.alpha, how.passes)])
        above = full[confidence >= t[full]]
        return Labels(stages, full, soft, _count(full, len(t)), _count(above, len(t)))


def _count(labels: Int64[Tensor, "..."], num_classes: int) -> Int64[Tensor, " K"]:
    return labels.flatten().bincount(minlength=256)[:num_classes].cpu()


def count_confidences(
    labeller: Labeller, domain: Domain, state: Path, *, workers: int = 1, shard: tuple[int, int] = (0, 1)
) -> ConfidenceHistogram:
    """First pass: the confidences of the pixels by predicted class, in constant memory."""
    classes = labeller.net.num_classes
    counts = np.zeros((classes, BINS), np.int64)

    def task(_: int, pixels: np.ndarray) -> None:
        confidence, ids = labeller.probabilities(pixels).max(dim=0)
        histogram = ConfidenceHistogram(classes)
        histogram.add(ids.cpu(), confidence.cpu())
        np.add(counts, histogram.counts.numpy(), out=counts)

    produce(domain, labeller.size, task, {"counts": counts}, state, title="thresholds", workers=workers, shard=shard)
    return ConfidenceHistogram(classes, torch.from_numpy(counts))


@dataclass(frozen=True)
class Tally:
    """Numbers of pixels by image and class, of N images: rows of images of other shards are 0, so tallies add up.

    Attributes:
        predicted, above: (N, K), see `Labels`.
        labelled: (N, 1 + P, K), by the thresholds alone and after each voting pass.
    """

    predicted: Int64[np.ndarray, "N K"]
    above: Int64[np.ndarray, "N K"]
    labelled: Int64[np.ndarray, "N S K"]


def write_labels(
    labeller: Labeller,
    thresholds: Float[Tensor, " K"],
    domain: Domain,
    folder: Path,
    state: Path,
    *,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> Tally:
    """Second pass: the labels of every image as files."""
    settings, count, classes = labeller.settings, len(domain), len(domain.classes)
    stages = 1 + (settings.voting.passes if settings.voting else 0)
    tally = Tally(
        np.zeros((count, classes), np.int64),
        np.zeros((count, classes), np.int64),
        np.zeros((count, stages, classes), np.int64),
    )

    def task(index: int, pixels: np.ndarray) -> None:
        name, labels = domain.items[index].name, labeller.label(pixels, thresholds)
        write_ids(folder / "labels" / f"{name}.png", _bytes(labels.final), domain.classes)
        if settings.voting is not None:
            write_palette(folder / "passes" / f"{name}.png", labels.added_in(), PASS_COLOURS)
        if settings.split is not None:
            write_ids(folder / "full" / f"{name}.png", _bytes(labels.full), domain.classes)
        if labels.soft is not None:
            write_soft(folder / "soft" / f"{name}.npz", labels.soft.permute(1, 2, 0).cpu().numpy())
        tally.predicted[index], tally.above[index] = labels.predicted.numpy(), labels.above.numpy()
        tally.labelled[index] = torch.stack([_count(stage, classes) for stage in labels.stages]).numpy()

    produce(domain, labeller.size, task, vars(tally), state, title="labels", workers=workers, shard=shard)
    return tally


def _bytes(ids: Int64[Tensor, "h w"]) -> UInt8[np.ndarray, "h w"]:
    array: UInt8[np.ndarray, "h w"] = ids.to(torch.uint8).cpu().numpy()
    return array


PARTS = ("labels", "passes", "full", "soft")
STATES = ("thresholds.state.npz", "labels.state.npz")
PRIOR = "spatial_prior.npz"


def make_pseudo_labels(labeller: Labeller, domain: Domain, folder: Path, *, workers: int = 1) -> None:
    """Label a domain's images into `folder` (see `artefacts.pseudo_labels`); called again, it goes on.

    An artefact that is whole is left as it is; one that was finished and is damaged now is made anew.

    Raises:
        UserError, Interrupted: see `produce`.
    """
    clear_damaged(folder)
    if not (folder / SEAL).exists():
        _make(labeller, domain, folder, workers)
    for state in STATES:
        (folder / state).unlink(missing_ok=True)


def clear_damaged(folder: Path) -> None:
    """Remove an artefact that was finished and is damaged now, the spatial prior too: its seal last, so that a kill
    half-way leaves something that is still known to be damaged."""
    if not (folder / SEAL).exists() or not damaged(folder):
        return
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    for name in (*STATES, "thresholds.json", "statistics.json", "quality.json", PRIOR, SEAL):
        (folder / name).unlink(missing_ok=True)


def _make(labeller: Labeller, domain: Domain, folder: Path, workers: int) -> None:
    make_folder(folder)
    settings, path = labeller.settings, folder / "thresholds.json"
    if not path.exists():
        histogram = count_confidences(labeller, domain, folder / STATES[0], workers=workers)
        chosen_by = settings.model_dump(include={"rule", "portion", "quantile", "cap", "value"})
        names, palette = list(domain.classes.names), [list(colour) for colour in domain.classes.palette]
        write_json(
            path,
            {"classes": names, "palette": palette, **chosen_by, "thresholds": settings.thresholds(histogram).tolist()},
        )
    thresholds, written = read_thresholds(folder), _files(settings, domain, folder)
    tally = write_labels(labeller, thresholds, domain, folder, folder / STATES[1], workers=workers)
    if not all(file.is_file() for file in written):  # what an earlier go had written was removed since
        (folder / STATES[1]).unlink()
        tally = write_labels(labeller, thresholds, domain, folder, folder / STATES[1], workers=workers)
    write_json(folder / "statistics.json", statistics(tally, thresholds, settings, domain, labeller.size))
    seal(folder, "pseudo_labels", [path, folder / "statistics.json", *folder.glob(PRIOR), *written])


def _files(settings: LabelSettings, domain: Domain, folder: Path) -> list[Path]:
    """All files that `write_labels` leaves."""
    made = {"labels": True, "passes": settings.voting, "full": settings.split, "soft": settings.soft_alpha}
    ends = {part: ".npz" if part == "soft" else ".png" for part in PARTS}
    return [folder / part / f"{item.name}{ends[part]}" for part in PARTS if made[part] for item in domain.items]


def read_thresholds(folder: Path) -> Float[Tensor, " K"]:
    """The thresholds (K,) that a labels stage found."""
    return torch.tensor(read_json(folder / "thresholds.json")["thresholds"], dtype=torch.float64).float()


def statistics(
    tally: Tally, thresholds: Float[Tensor, " K"], settings: LabelSettings, domain: Domain, size: tuple[int, int]
) -> dict[str, Any]:
    """The content of statistics.json: pixels by class, and of each image its coverage, score and part of the split."""
    pixels = size[0] * size[1]
    scores = image_score(torch.from_numpy(tally.predicted), torch.from_numpy(tally.above), thresholds)
    easy, cutoff = None, None
    if settings.split is not None:
        easy = easy_images(scores, settings.split.mode, settings.split.value)
        cutoff = float(scores[easy].min()) if easy.any() else None
    shares = tally.labelled[:, -1].sum(axis=1) / pixels
    return {
        "images": len(domain),
        "pixels": pixels * len(domain),
        "predicted": tally.predicted.sum(axis=0).tolist(),
        "labelled": tally.labelled.sum(axis=0).tolist(),
        "easy_cutoff": cutoff,
        "per_image": [
            {
                "name": item.name,
                "labelled": float(shares[i]),
                "score": float(scores[i]),
                "easy": None if easy is None else bool(easy[i]),
            }
            for i, item in enumerate(domain.items)
        ],
    }
