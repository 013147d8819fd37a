"""`segshift check`: read the data as training will, show it, and say what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segshift.artefacts.store import make_folder
from segshift.data.contact import class_histogram, contact_sheet
from segshift.data.domains import Domain
from segshift.data.statistics import Scan, scan
from segshift.engine.evaluate import preview_labels
from segshift.engine.progress import track
from segshift.errors import UserError
from segshift.setup import Domains

RARE = 1e-4
"""Share of the source's labelled pixels below which a class is called rare."""


@dataclass(frozen=True)
class Checked:
    """What `check` found.

    Attributes:
        problems: what would stop a training, each with its fix.
        warnings: what would not, but is worth knowing.
        lines: facts for people.
        pictures: files written.
    """

    problems: list[UserError]
    warnings: list[str]
    lines: list[str]
    pictures: list[Path]


def check(domains: Domains, out: Path, workers: int = 1) -> Checked:
    """Read every file of every domain, and write contact-sheet.png and classes.png into `out`.

    Target images are read without labels. The labelled part `val`, where there is one, is previewed through
    `evaluate` and then scanned; when its labels cannot be read that is a warning, since only
    `evaluate` needs them. `workers` processes decode.
    """
    make_folder(out)
    found = Checked([], [], [], [])
    scans = {domain.name: _scan(domain, workers) for domain in (domains.source, domains.target)}
    for domain in (domains.source, domains.target):
        result = scans[domain.name]
        found.problems.extend(result.problems(domain))
        found.lines.extend(_facts(domain, result))
    source = scans["source"]
    shares = {"source": source.shares}
    shown: list[Domain] = [domains.source, domains.target]
    if domains.val is not None:
        found.lines.append(f"val: {len(domains.val)} images with labels, for evaluation only")
        try:
            preview_labels(domains.val)
            val = _scan(domains.val, workers)
            for problem in val.problems(domains.val):
                found.warnings.append(f"evaluation will fail: {problem}")
            shares["target (val)"] = val.shares
            shown[1] = domains.val
        except UserError as error:
            found.warnings.append(f"evaluation will fail: {error}")
    found.warnings.extend(_class_warnings(domains, source))
    readable = not any(scans[name].unreadable for name in scans)
    found.pictures.extend(_draw(out, shown if readable else [], domains, shares, found.warnings.append))
    return found


def _scan(domain: Domain, workers: int) -> Scan:
    with track(f"check {domain.name}", len(domain)) as bar:
        return scan(domain, workers=workers, progress=lambda done, total: bar.advance())


def _facts(domain: Domain, result: Scan) -> list[str]:
    sizes = sorted(result.sizes.items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sizes[:3])
    more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
    kind = "with labels" if domain.labelled else "no labels looked at"
    lines = [f"{domain.name}: {len(domain)} images in {domain.settings.root}, {kind}; sizes {shown}{more}"]
    if domain.decoder is not None:
        lines.extend(f"  {note}" for note in domain.decoder.notes)
        total = result.ignored + sum(result.pixels)
        lines.append(f"  ignored pixels: {100 * result.ignored / max(1, total):.1f} %")
        width = max(len(name) for name in domain.classes.names)
        for name, share, images in zip(domain.classes.names, result.shares, result.images_with, strict=True):
            lines.append(f"  {name:<{width}} {100 * share:7.3f} %  in {images} images")
    return lines


def _class_warnings(domains: Domains, source: Scan) -> list[str]:
    warnings = []
    names = domains.classes.names
    if any(source.pixels):
        missing = [name for name, pixels in zip(names, source.pixels, strict=True) if pixels == 0]
        rare = [name for name, share in zip(names, source.shares, strict=True) if 0 < share < RARE]
        if missing:
            warnings.append(f"no source label holds {', '.join(missing)}: it can never be predicted; see the class_map")
        if rare:
            warnings.append(f"rare in the source (under 0.01 % of the pixels): {', '.join(rare)}")
    if source.all_ignored:
        example = source.all_ignored[0]
        warnings.append(f"{len(source.all_ignored)} source labels hold ignored pixels alone, as {example}")
    return warnings


def _draw(
    out: Path,
    shown: list[Domain],
    domains: Domains,
    shares: dict[str, tuple[float, ...]],
    warn: Callable[[str], None],
) -> list[Path]:
    pictures = []
    try:
        if shown:
            pictures.append(out / "contact-sheet.png")
            contact_sheet(pictures[-1], shown)
        if any(map(any, shares.values())):
            pictures.append(out / "classes.png")
            class_histogram(pictures[-1], domains.classes, shares)
    except UserError as error:
        warn(f"no picture: {error}")
        pictures.pop()
    return pictures
