"""Window voting: pseudo-labels that spread to the pixels around them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segshift.types import IGNORE


@torch.no_grad()
def window_vote(
    probabilities: Float[Tensor, "K H W"],
    labels: Int64[Tensor, "H W"],
    thresholds: Float[Tensor, " K"],
    window: int,
    alpha: float,
    passes: int,
) -> Int64[Tensor, "P H W"]:
    """Densify pseudo-labels: in each pass, pixels without a label take one from the labelled pixels around them.

    For each of a pixel's two most probable classes c, v_c is the mean of p_c over those pixels of the window around it
    that carry label c (0 where none does; nothing beyond the border votes), and s_c = alpha p_c + (1 - alpha) v_c. The
    pixel gets the class with the higher s_c (the more probable one, then the lower id, where they tie) if that
    exceeds the class's threshold. All pixels of a pass are decided on the labels before it.

    The time does not depend on the window. Sums are of integers, hence the same on every device and in any order: a
    voter's p_c counts in multiples of 2^-24 (coarser where a window holds 2^19 pixels or more: 2^-19 for all of
    1024 x 2048), scores are of float64.

    Args:
        probabilities: (K, H, W) in [0, 1], of one image.
        labels: (H, W) train ids in [0, K), or `IGNORE` where a pixel has none; labels that are set stay.
        thresholds: (K,) at the same scale as the probabilities (`artefacts.thresholds`).
        window: side of the square window in pixels, odd; it may be larger than the image.
        alpha: weight of the pixel's own probability, in [0, 1].
        passes: number of passes P.

    Returns:
        (P, H, W) the labels after each pass; the last is the result.

    Raises:
        ValueError: the window is not odd and positive, alpha outside [0, 1], passes negative, a probability outside
            [0, 1] or not a number, or a label that is no class.

    Source: TPLD, phase 1 (methods.md section 8: a reconstruction, not verified against the paper).
    """
    _check_vote(probabilities, labels, window, alpha, passes)
    after = labels.new_empty(passes, *labels.shape)
    if not after.numel():
        return after
    probabilities = probabilities.float()
    vote = _WindowVote(probabilities, thresholds, window, alpha)
    labelled = labels != IGNORE
    own = probabilities.gather(0, labels.where(labelled, 0).unsqueeze(0)).squeeze(0)
    ballots = vote.ballot(own).where(labelled, 0)
    for result in after:
        labels, ballots = vote.once(labels, ballots)
        result.copy_(labels)
    return after


def _check_vote(probabilities: Tensor, labels: Tensor, window: int, alpha: float, passes: int) -> None:
    if len(probabilities) == 0:
        raise ValueError("probabilities of no class")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"the window must be odd and positive, got {window}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if passes < 0:
        raise ValueError(f"passes must not be negative, got {passes}")
    wrong = ((labels < 0) | (labels >= len(probabilities))) & (labels != IGNORE)
    if wrong.any():
        raise ValueError(f"labels must lie in [0, {len(probabilities)}) or be {IGNORE}, got {labels[wrong][0].item()}")
    if probabilities.numel():
        lowest, highest = probabilities.aminmax()
        if not (lowest >= 0 and highest <= 1 + 1e-4):  # written so that NaN fails
            raise ValueError(f"probabilities must lie in [0, 1], got {lowest.item()} to {highest.item()}")


def _grain(tensor: Tensor) -> int:
    """Elements of one operation when work is done in parts.

    On CPU just below what torch gives to a second thread: parts stay in one core's cache, and none of thousands of
    short operations waits for another thread, which takes milliseconds each where cores are shared.
    """
    return (1 << 15) - 1 if tensor.device.type == "cpu" else 1 << 24


def _two_best(probabilities: Float[Tensor, "K H W"]) -> tuple[Float[Tensor, "H C W"], Int64[Tensor, "H C W"]]:
    """Each pixel's two largest probabilities, of ties the lower class first, and their classes; C is 1 where K is."""
    classes, height, width = probabilities.shape
    best = probabilities.new_full((height, 2, width), -1, dtype=torch.float32)
    ids = probabilities.new_zeros((height, 2, width), dtype=torch.int64)
    step = max(1, _grain(probabilities) // (2 * width))
    for start in range(0, height, step):
        rows = slice(start, start + step)
        first, second = best[rows].unbind(1)
        first_id, second_id = ids[rows].to(torch.uint8).unbind(1)
        for k, p in enumerate(probabilities[:, rows]):
            leads, follows = p > first, p > second
            second_id = torch.where(leads, first_id, second_id.masked_fill(follows, k))
            first_id = first_id.masked_fill(leads, k)
            second = torch.maximum(second, torch.minimum(first, p))
            first = torch.maximum(first, p)
        best[rows] = torch.stack([first, second], dim=1)
        ids[rows] = torch.stack([first_id, second_id], dim=1).long()
    candidates = min(2, classes)
    return best[:, :candidates], ids[:, :candidates]


class _WindowVote:
    """Window voting on one image: what stays the same from pass to pass.

    A ballot is an integer with a count of 1 in its upper bits and a probability in its lower ones, so one sum gives
    both. `_totals` keeps for each class and column the sum of the ballots in the window's rows: from row to row it
    gains a row and loses one. Running sums of these along a row, read at both ends of a window, give its total; that
    they may overflow does not matter, since the difference of two cannot.
    """

    def __init__(self, probabilities: Tensor, thresholds: Tensor, window: int, alpha: float) -> None:
        self.classes, height, width = probabilities.shape
        self.half, self.alpha = window // 2, alpha
        voters = min(window, height) * min(window, width)
        self.bits = min(24, 63 - 2 * voters.bit_length())
        self.shift = self.bits + voters.bit_length()
        self.x = torch.arange(width, device=probabilities.device)
        # Of each pixel's C candidates, C = 2 or the one class that there is: (H, C, W).
        best, self.ids = _two_best(probabilities)
        self.own = alpha * best.double()
        self.needed = thresholds.double()[self.ids]
        self.ballots = self.ballot(best)
        # Where a row's C W candidates find their totals in the flat running sums (K, W + 1): (H, 2, C, W).
        ends = torch.stack([(self.x - self.half).clamp(min=0), (self.x + self.half).clamp(max=width - 1) + 1])
        self.ends = ends.unsqueeze(1) + (self.ids * (width + 1)).unsqueeze(1)

    def ballot(self, probability: Tensor) -> Tensor:
        """The votes of pixels with these probabilities of their labels."""
        scaled = probability.clamp(max=1).double().mul_(1 << self.bits)
        return scaled.add_(0.5).long().add_(1 << self.shift)

    def once(self, labels: Tensor, ballots: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and ballots (H, W) after a pass over those before it; pixels without a label have a ballot of 0."""
        after, ballots_after = torch.empty_like(labels), torch.empty_like(ballots)
        for rows, totals in self._totals(labels, ballots):
            inside = totals[:, 1] - totals[:, 0]
            mean = (inside & ((1 << self.shift) - 1)).double()
            mean /= (inside >> self.shift << self.bits).clamp_(min=1)
            score = mean.mul_(1 - self.alpha).add_(self.own[rows])
            wins = score > self.needed[rows]
            winner, label, ballot = wins[:, 0], self.ids[rows, 0], self.ballots[rows, 0]
            if wins.shape[1] > 1:
                other = score[:, 1] > score[:, 0]
                winner = torch.where(other, wins[:, 1], winner)
                label = torch.where(other, self.ids[rows, 1], label)
                ballot = torch.where(other, self.ballots[rows, 1], ballot)
            winner &= labels[rows] == IGNORE
            after[rows] = torch.where(winner, label, labels[rows])
            ballots_after[rows] = torch.where(winner, ballot, ballots[rows])
        return after, ballots_after

    def _totals(self, labels: Tensor, ballots: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """For some rows at a time: the running sums (rows, 2, C, W) at both ends of each candidate's window."""
        height, width = labels.shape
        place = labels.where(labels != IGNORE, 0) * width + self.x
        column = ballots.new_zeros(self.classes * width)
        running = ballots.new_zeros(self.classes, width + 1)
        column.scatter_add_(0, place[: self.half].flatten(), ballots[: self.half].flatten())
        step = max(1, _grain(labels) // self.ends[0].numel())
        lines = max(1, _grain(labels) // width)
        by_class = column.view(self.classes, width)
        pairs = [(by_class[i : i + lines], running[i : i + lines, 1:]) for i in range(0, self.classes, lines)]
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            totals = torch.empty_like(self.ends[rows])
            for y in range(start, rows.stop):
                if y + self.half < height:
                    column.scatter_add_(0, place[y + self.half], ballots[y + self.half])
                if y > self.half:
                    gone = y - self.half - 1
                    column.scatter_add_(0, place[gone], -ballots[gone])
                for sums, running_sums in pairs:
                    torch.cumsum(sums, dim=1, out=running_sums)
                torch.index_select(running.view(-1), 0, self.ends[y].view(-1), out=totals[y - start].view(-1))
            yield rows, totals
